"""What all programs share: when they began, and how they end; `~` is expanded. Imported with the package, before jax.

Missing extras, errors of files and Ctrl-C end in one line.
"""

import atexit
import os
import re
import sys
import time
import traceback as tracebacks
from collections.abc import Callable
from types import TracebackType

INTERRUPTED_EXIT_CODE = 130  # Ctrl-C, as of shells

# Modules of the extras in pyproject.toml, by extra.
MODULES = {
    "train": {"av", "clu", "matplotlib", "PIL", "sklearn", "tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"},
    "report": {"jinja2"},
    "parquet": {"pyarrow"},
    "serve": {"fastapi", "prometheus_client", "uvicorn"},
}


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


def prepare_program() -> None:
    """Makes programs of this package (`python -m vivit_jax.NAME`, `vivit-NAME`) name the extra that they lack, and take
    `--FLAG=~/folder`, which no shell expands.

    Their output escapes (as `\\xe9`) what the terminal cannot print: file names that are not UTF-8, and with another
    encoding (LC_ALL=C) most labels. Called by `vivit_jax/__init__.py`, before any optional import.
    """
    program = os.path.basename(sys.argv[0])  # "-m" while Python looks for the module that it will run
    if program == "-m" or program.startswith("vivit-"):
        sys.excepthook = _excepthook
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not where a test or a notebook has replaced it
                stream.reconfigure(errors="backslashreplace")
        home = os.path.expanduser("~")
        sys.argv[1:] = [re.sub(r"^(--?[\w.]+=)~(?=/|$)", lambda flag: flag[1] + home, word) for word in sys.argv[1:]]


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        tracebacks.clear_frames(traceback)  # closes generators, and with them files and worker processes
        sys.stderr.write("interrupted\n")
        sys.stdout.flush()
        os._exit(INTERRUPTED_EXIT_CODE)  # not waiting for threads, which may compile for minutes
    if isinstance(error, OSError) and error.filename is not None:
        sys.stderr.write(f"error: {error}\n")
        return
    module = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    for extra, modules in MODULES.items():
        if module in modules:
            problem = f"{module} is not installed; this program needs the extra {extra}"
            sys.stderr.write(f'error: {problem}: pip install "vivit_jax[{extra}]"\n')
            return
    sys.__excepthook__(kind, error, traceback)
