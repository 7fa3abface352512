"""A run that is told to stop: it saves the step that it is at, and the same command goes on from there.

Several processes, and any run that `jax.distributed` knows of, agree on the step by its preemption service (Orbax's
`reached_preemption`). A single process listens to SIGTERM itself.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from absl import logging

from vivit_jax.checkpoint import Checkpoints


class Preemption:
    """Whether the run is to stop at a step, the same answer in every process.

    Args:
      checkpoints: the run's.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._told = False

    def reached(self, step: int) -> bool:
        """Whether to save `step` and leave; call it after every step."""
        return self._told or self._checkpoints.reached_preemption(step)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Preemption]:
        """Inside, SIGTERM asks for the stop instead of ending the process.

        Under `jax.distributed` nothing is installed: its own handler tells the other processes, and Python's would take
        its place. Nor outside the main thread, where Python takes no handlers.
        """
        if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
            yield self
            return

        def told(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._told = True
            logging.warning("SIGTERM: the run saves its next step and stops.")

        before = signal.signal(signal.SIGTERM, told)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
