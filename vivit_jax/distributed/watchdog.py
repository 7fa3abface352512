"""Ends a process whose training steps have stalled."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator


class Watchdog:
    """Ends a process whose steps have stopped, with the traceback of each of its threads on standard error.

    A process that hangs still answers heartbeats, so the others would wait for it for ever.

    Args:
      seconds: longest time from one `step` to the next; 0 for no watchdog. It must cover what the host waits for at
        once: as many steps as are taken between two lines of the log.
    """

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f"step_timeout_seconds={seconds} must be at least 0; 0 is off")
        self._seconds = seconds

    def step(self) -> None:
        """Starts the time anew. The first call, after the first step, starts the watch: compiling may take long."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what may take longer than a step: evaluation, saving. The time starts anew after it."""
        self.close()
        yield
        self.step()

    def close(self) -> None:
        """Ends the watch."""
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def watchdog(seconds: float) -> Watchdog:
    """A `Watchdog` of a run's steps, seconds apart at most; 0 for one that does nothing."""
    return Watchdog(seconds)
