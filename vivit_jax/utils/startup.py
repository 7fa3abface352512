"""Seconds from the start of a program to its first step, by what they were spent on."""

import atexit
import os
import time
from collections.abc import Callable


def _age() -> float:
    """Returns how many seconds ago this process began; 0 where the system (other than Linux) does not tell."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        return 0.0
    return age if 0 < age < 60 else 0.0


_IMPORTED = time.perf_counter() - _age()  # with the package, before jax
AT_EXIT: list[Callable[[], None]] = []
atexit.register(lambda: [call() for call in AT_EXIT])  # after the handlers of what is imported later


class Startup:
    """Divides the time since the program began, or for a later run of the same program since now, into parts."""

    _first = True

    def __init__(self) -> None:
        self._began = self._last = _IMPORTED if Startup._first else time.perf_counter()
        Startup._first = False
        self.parts: dict[str, float] = {}

    def mark(self, part: str, until: float | None = None) -> None:
        """Counts the time since the last mark, to now or to a time of `perf_counter` in between, as `part`."""
        now = time.perf_counter() if until is None else max(until, self._last)
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"{self._last - self._began:.1f} s ({parts})"
