"""When the program began, and what is left to do at its end; imported with the package, before jax."""

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


BEGAN = time.perf_counter() - _age()  # of the program, on that clock
AT_EXIT: list[Callable[[], None]] = []
atexit.register(lambda: [call() for call in AT_EXIT])  # after the handlers of what is imported later
