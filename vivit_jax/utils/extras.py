"""What all programs share: when they began, and how they end; `~` is expanded. Imported with the package, before jax.

Missing extras, errors of files and Ctrl-C end in one line.
"""

import os
import re
import sys
import time
import traceback as tracebacks
from types import TracebackType

BEGAN = time.perf_counter()  # of the program, on that clock
INTERRUPTED_EXIT_CODE = 130  # Ctrl-C, as of shells

# Modules of the extras in pyproject.toml, by extra.
MODULES = {
    "train": {"av", "clu", "matplotlib", "PIL", "sklearn", "tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"},
    "report": {"jinja2"},
    "parquet": {"pyarrow"},
    "serve": {"fastapi", "prometheus_client", "uvicorn"},
}


def prepare_program() -> None:
    """Makes programs of this package (`python -m vivit_jax.NAME`, `vivit-NAME`) name the extra that they lack, take
    `--FLAG=~/folder`, which no shell expands, and let jax use the CPU beside the JAX_PLATFORMS, to count operations.

    Their output escapes (as `\\xe9`) what the terminal cannot print: file names that are not UTF-8, and with another
    encoding (LC_ALL=C) most labels. Called by `vivit_jax/__init__.py`, before any optional import.
    """
    program = os.path.basename(sys.argv[0])  # "-m" while Python looks for the module that it will run
    if program == "-m" or program.startswith("vivit-"):
        sys.excepthook = _excepthook
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not where a test or a notebook has replaced it
                stream.reconfigure(errors="backslashreplace")
        platforms = os.environ.get("JAX_PLATFORMS", "")
        # Where no NVIDIA GPU is visible, "cuda,cpu" would be the CPU alone, without an error.
        gpu = any(os.path.exists(f"/dev/{name}") for name in ("nvidia0", "nvidiactl", "dxg"))
        if platforms and "cpu" not in platforms.split(",") and (gpu or "cuda" not in platforms):
            os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"  # the first stays the default
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
