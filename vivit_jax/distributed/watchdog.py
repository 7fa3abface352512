"""Ends a run that has stalled: a process that hangs still answers heartbeats, and the others would wait for ever."""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from vivit_jax.distributed import peers

# Longest time of each phase, as a multiple of `config.step_timeout_seconds`.
LIMITS = {
    "build": 48.0,  # opening a custom data set, whose records are built where they are missing
    "start": 2.0,  # opening the data; restoring the state, or reading pretrained weights
    "compile": 4.0,
    "batch": 1.0,  # waiting for the input pipeline
    "step": 1.0,
    "evaluation": 4.0,  # from one batch to the next; the first compiles
    "save": 2.0,
    "end": 2.0,  # the report, and waiting for the other processes
}
DEFAULT_SECONDS = 1800.0  # of several processes
_POLL, _GRACE, _LAST_RESORT = 5.0, 10.0, 30.0  # seconds
_POSITIONS, _STALLED = "vivit_jax/watchdog/positions/", "vivit_jax/watchdog/stalled/"  # keys, followed by a process


class _Watchdog(threading.Thread):
    """Looks every few seconds whether this process is in a phase for too long, or another process has stalled."""

    def __init__(self, seconds: float):
        super().__init__(name="watchdog", daemon=True)
        self._seconds, self._beats, self.closed = seconds, 0, threading.Event()
        self.beat("start", None)

    def beat(self, phase: str, step: int | None) -> None:
        self._beats += 1
        where = phase if step is None else f"{phase} {step}"
        self._state = self._beats, where, LIMITS[phase] * self._seconds, time.monotonic()  # at once: a thread reads it

    def run(self) -> None:
        while not self.closed.wait(min(_POLL, self._seconds / 4)):
            beats, where, limit, began = self._state
            left, stalled = began + limit - time.monotonic(), []
            # For when this thread no longer runs, because C code holds Python's lock or the service does not answer.
            faulthandler.dump_traceback_later(max(left, 0) + _LAST_RESORT, exit=True)
            with contextlib.suppress(Exception):  # a single process has no service; without it, jax ends the others
                peers.publish(_POSITIONS, f"{beats} ({socket.gethostname()}, {where})")
                stalled = peers.published(_STALLED)
            if left < 0:
                _end(f"{where} took more than {limit:g} s (config.step_timeout_seconds={self._seconds:g})")
            elif stalled:
                _end(f"process {stalled[0][0]} has stalled, while this one was at {where}")
        faulthandler.cancel_dump_traceback_later()


def _end(why: str) -> None:
    """Ends the process, after the others had time to see why."""
    print(f"error: {why}: the process ends. Its threads:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    with contextlib.suppress(Exception):
        peers.publish(_STALLED, "")
        # All processes have the same beats, so the one with the fewest is behind.
        places: dict[int, list[str]] = {}
        for process, at in peers.published(_POSITIONS):
            beats, _, where = at.partition(" ")
            places.setdefault(int(beats), []).append(f"process {process} {where}")
        which = "behind the others" if len(places) > 1 else "all are at the same place"
        print(f"error: {which}: {', '.join(places[min(places)])}", file=sys.stderr, flush=True)
        # Process 0 ends last: it holds the service, without which jax aborts the others (SIGABRT, exit code -6).
        time.sleep(_GRACE if jax.process_index() else 2 * _GRACE)
    os._exit(1)


_active: list[_Watchdog] = []


@contextlib.contextmanager
def watching(seconds: float | None) -> Iterator[None]:
    """Inside, a phase (`beat`) over its limit ends this process, and all others of the run, with exit code 1.

    Each prints the stacks of its threads, and which process is behind. `seconds` is the limit of a step; None: half an
    hour for several processes, none for one; 0: none. A context inside another changes nothing.
    """
    seconds = (DEFAULT_SECONDS if peers.several() else 0.0) if seconds is None else seconds
    if _active or not seconds:
        yield
        return
    _active.append(watchdog := _Watchdog(seconds))
    watchdog.start()
    try:
        yield
    finally:
        _active.remove(watchdog)
        watchdog.closed.set()
        watchdog.join(_POLL)


def beat(phase: str, step: int | None = None) -> None:
    """Says that this process begins a phase of `LIMITS`; costs microseconds. All processes do it equally often."""
    for watchdog in _active:
        watchdog.beat(phase, step)
