"""Stopping a run on request (SIGTERM): it saves its step, and the same command resumes from there.

Under `jax.distributed` the processes agree on the step by its preemption service (Orbax's `reached_preemption`). A
single process without it handles SIGTERM itself.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, Self

import jax
from absl import logging


class Preemption:
    """Reports whether the run should stop at a step, by its `Checkpoints`; the same answer in every process."""

    def __init__(self, checkpoints: Any):
        self._checkpoints = checkpoints
        self._requested = False

    def reached(self, step: int) -> bool:
        """Returns whether to save `step` and stop; call it after every step."""
        return self._requested or self._checkpoints.reached_preemption(step)

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
            logging.warning("SIGTERM: the run saves its next step and stops.")

        previous = signal.signal(signal.SIGTERM, request_stop)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)
