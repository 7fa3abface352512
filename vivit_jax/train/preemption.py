"""Stopping a run on request (SIGTERM): it saves its step, and the same command resumes from there.

Under `jax.distributed` the processes agree on the step by its preemption service (Orbax's `reached_preemption`). A
single process without it handles SIGTERM itself: it leaves within `DEADLINE_SECONDS`, whatever it is doing, except that
a step that is being saved is saved to its end. A second SIGTERM ends it at once.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, Self

import jax
from absl import logging

from vivit_jax.distributed.shutdown import PREEMPTED_EXIT_CODE

DEADLINE_SECONDS = 30.0  # preemptible machines are switched off after 30 s
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM


class Preemption:
    """Reports whether the run should stop, by its `Checkpoints`; the same answer in every process.

    Attributes:
      training: whether a request waits for the next step. Before, there is nothing to save, and it ends the program.
      saving: whether the step is being saved, which may take longer than the deadline.
    """

    def __init__(self, checkpoints: Any):
        self._checkpoints = checkpoints
        self._requested, self._calls = False, 0
        self.training = self.saving = False

    def reached(self) -> bool:
        """Returns whether to save and stop; every process calls it equally often: after steps, in evaluations."""
        self._calls += 1
        return self._requested or self._checkpoints.reached_preemption(self._calls)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Self]:
        """Inside, SIGTERM requests the stop instead of ending the process.

        Installs nothing under `jax.distributed`, whose own handler it would replace, and outside the main thread, where
        Python accepts no handlers.
        """
        if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
            yield self
            return

        def request_stop(*_: Any) -> None:
            self._requested = True
            if not self.training:
                logging.warning("SIGTERM before the first step: there is nothing to save.")
                sys.exit(PREEMPTED_EXIT_CODE)
            logging.warning("SIGTERM: the run saves its next step and stops.")

        previous = signal.signal(signal.SIGTERM, request_stop)
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        previous_wakeup = signal.set_wakeup_fd(sender)
        threading.Thread(target=self._limit, args=(receiver,), daemon=True).start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous_wakeup)
            os.close(sender)  # ends the thread
            signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)

    def _limit(self, receiver: int) -> None:
        """Ends the process after a second SIGTERM, or when the deadline has passed; runs in a thread of its own, since
        Python's handlers wait for the main thread, which may hang."""
        timer = None
        with open(receiver, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] != signal.SIGTERM:
                    continue
                if timer is not None:
                    logging.error("A second SIGTERM: the process ends without saving.")
                    os._exit(_ENDED_BY_SIGTERM)
                timer = threading.Timer(DEADLINE_SECONDS, self._end)
                timer.daemon = True
                timer.start()
        if timer is not None:
            timer.cancel()

    def _end(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident)
        where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
        if self.saving:
            logging.error(
                "Not stopped %g s after SIGTERM: the step is still being saved. At:\n%s", DEADLINE_SECONDS, where
            )
            return
        logging.error(
            "Not stopped %g s after SIGTERM: the process ends without saving. At:\n%s", DEADLINE_SECONDS, where
        )
        os._exit(_ENDED_BY_SIGTERM)
