"""How the processes of a run end together: exit codes, synchronized exit, exit deadline."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# A run that was asked to stop, and saved: the same command goes on. EX_TEMPFAIL of sysexits.h.
PREEMPTED_EXIT_CODE = 75


class Preempted(SystemExit):
    """A run that was told to stop (SIGTERM) and has saved its step; the process ends with `PREEMPTED_EXIT_CODE`."""

    def __init__(self, step: int):
        super().__init__(PREEMPTED_EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        return f"stopped on request; step {self.step} is saved, and the same command goes on from there"


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around the whole work of a process: the processes of a run end together.

    Where the work is done, each waits until all are (the first may still write a report). Where it fails in one of
    several processes, that one says why and is gone at once by `os._exit`: an ordinary exit would wait for the others,
    which wait for it. They notice within `HEARTBEAT_SECONDS`. A process that is alone ends as any program.
    """
    try:
        yield
        if _several():
            multihost_utils.sync_global_devices("vivit_jax.distributed.ending_together")
    except BaseException as error:
        if not _several():
            raise
        code = _say(error)
        if code in (0, PREEMPTED_EXIT_CODE):
            raise  # all of them stop, at the same step
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def limited_unwinding(seconds: float = 60.0) -> Iterator[None]:
    """Around the part of the work in which a failing process must not wait for the others for ever.

    When an exception leaves it, and there are several processes, what is cleaned up further out (a checkpoint that is
    being written, say) has so many seconds; after them the exception is printed and the process is gone.
    """
    try:
        yield
    except BaseException as error:
        if _several() and not isinstance(error, Preempted):
            timer = threading.Timer(seconds, _leave, args=(error,))
            timer.daemon = True
            timer.start()
        raise


def _leave(error: BaseException) -> None:
    code = _say(error)
    sys.stderr.flush()
    os._exit(code)


def _say(error: BaseException) -> int:
    """Prints what ended the process, as Python would, and gives its exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    traceback.print_exception(error)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def first() -> bool:
    """Whether this is the process that speaks and writes for all: number 0, or the only one."""
    return not _several() or jax.process_index() == 0


def _several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1
