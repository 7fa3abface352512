"""Stopping a run on request (SIGTERM, Ctrl-C): it saves its step, and the same command resumes from there.

Under `jax.distributed` the processes agree on the step by its preemption service (Orbax's `reached_preemption`). A
single process without it handles SIGTERM itself: it leaves within `DEADLINE_SECONDS`, whatever it is doing, except that
a step that is being saved is saved to its end. Ctrl-C has no deadline. A second signal ends the process at once.
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
        """Inside, SIGTERM and Ctrl-C request the stop instead of ending the process.

        Installs nothing outside the main thread, where Python accepts no handlers; under `jax.distributed` not for
        SIGTERM, of which its own handler tells all processes: Ctrl-C becomes one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        distributed = jax.distributed.is_initialized()

        def request_stop(*_: Any) -> None:
            self._requested = not distributed

        handled = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, request_stop) for number in handled}
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        previous_wakeup = signal.set_wakeup_fd(sender)
        threading.Thread(target=self._obey, args=(receiver, distributed), daemon=True).start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous_wakeup)
            os.close(sender)  # ends the thread
            for number, handler in previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _obey(self, receiver: int, distributed: bool) -> None:
        """Says what a signal does; ends the process after a second one, or when the deadline has passed.

        Runs in a thread of its own, since Python's handlers wait for the main thread, which may hang.
        """
        timer = threading.Timer(DEADLINE_SECONDS, self._end)
        timer.daemon, asked = True, False
        with open(receiver, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in (signal.SIGINT, signal.SIGTERM):
                    continue
                name = "Ctrl-C" if number[0] == signal.SIGINT else "SIGTERM"
                if asked:
                    logging.error("A second signal (%s): the process ends without the steps since the last save.", name)
                    os._exit(128 + number[0])
                if not self.training:
                    logging.warning("%s before the first step: there is nothing to save.", name)
                    os._exit(128 + number[0] if number[0] == signal.SIGINT else PREEMPTED_EXIT_CODE)
                logging.warning("%s: the run saves its next step and stops; a second one ends it at once.", name)
                asked = True
                if number[0] == signal.SIGTERM:
                    timer.start()
                elif distributed:
                    os.kill(os.getpid(), signal.SIGTERM)
        timer.cancel()

    def _end(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident)
        where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
        does = "step is still being saved" if self.saving else "process ends without the steps since the last save"
        logging.error("Not stopped %g s after SIGTERM: the %s. At:\n%s", DEADLINE_SECONDS, does, where)
        if not self.saving:
            os._exit(128 + signal.SIGTERM)
