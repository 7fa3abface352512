"""Ends a process whose training steps have stalled."""

import contextlib
import faulthandler
from collections.abc import Iterator
from typing import Any

from vivit_jax.train.hooks import Hook


class Watchdog(Hook):
    """Ends the process, with the traceback of each thread, when two steps are more than `seconds` apart; 0: off.

    A process that hangs still answers heartbeats, so the others would wait for it forever. The time must cover what the
    host waits for at once: all steps between two lines of the log.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f"step_timeout_seconds={seconds} must be at least 0; 0 is off")
        self._seconds = seconds

    def after_step(self, *_: Any) -> None:
        """Restarts the timer. The first call, after the step that compiles, starts it."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.close()
        yield
        self.after_step()

    def close(self, failed: bool = False) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
