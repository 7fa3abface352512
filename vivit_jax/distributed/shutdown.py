"""How the processes of a run end together: exit codes, synchronized exit, exit deadline."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator

from jax.experimental import multihost_utils

from vivit_jax.distributed import peers, watchdog
from vivit_jax.utils.extras import INTERRUPTED_EXIT_CODE

# The run was asked to stop and has saved; the same command resumes it. EX_TEMPFAIL of sysexits.h.
PREEMPTED_EXIT_CODE = 75


class Preempted(SystemExit):
    """The run was asked to stop (SIGTERM) and has saved its step; the process exits with `PREEMPTED_EXIT_CODE`."""

    def __init__(self, step: int):
        super().__init__(PREEMPTED_EXIT_CODE)
        self.step = step

    def __str__(self) -> str:
        return f"stopped on request; step {self.step} is saved, and the same command resumes from there"


@contextlib.contextmanager
def synchronized_exit() -> Iterator[None]:
    """Surrounds the whole work of a process, so that the processes of a run end together.

    On success each process waits for all others (process 0 may still write a report). On failure in one of several
    processes, that one prints the error and ends at once by `os._exit`: an ordinary exit would wait for the others,
    which wait for it. They notice within `HEARTBEAT_SECONDS`. A single process ends as any program.
    """
    try:
        yield
        if peers.several():
            watchdog.beat("end")
            multihost_utils.sync_global_devices("vivit_jax.distributed.synchronized_exit")
    except BaseException as error:
        if not peers.several():
            raise
        if isinstance(error, SystemExit) and error.code in (None, 0, PREEMPTED_EXIT_CODE):
            raise  # all processes stop at the same step
        _exit_process(error)


@contextlib.contextmanager
def exit_deadline(seconds: float = 60.0) -> Iterator[None]:
    """Limits how long the clean-up after an exception may take, in a run of several processes.

    When an exception leaves the context, the clean-up further out (which may wait for the other processes, e.g. to
    finish a checkpoint) has so many seconds; then the exception is printed and the process ends.
    """
    try:
        yield
    except BaseException as error:
        if peers.several() and not isinstance(error, Preempted):
            timer = threading.Timer(seconds, _exit_process, args=(error,))
            timer.daemon = True
            timer.start()
        raise


def _exit_process(error: BaseException) -> None:
    """Prints an uncaught exception as Python would, and ends the process with its exit code."""
    code = INTERRUPTED_EXIT_CODE if isinstance(error, KeyboardInterrupt) else 1
    if code == INTERRUPTED_EXIT_CODE:
        print("interrupted", file=sys.stderr)
    elif not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif error.code is None or isinstance(error.code, int):
        code = error.code or 0
    else:
        print(error.code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
