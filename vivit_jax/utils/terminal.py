"""Progress bars, and text that a terminal or a UTF-8 file cannot hold."""

import os
import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(iterable: Iterable | None = None, *, title: str, total: int, done: int = 0, show: bool = True) -> Any:
    """Returns a tqdm bar over `total` videos, `done` of them processed: live in a terminal, every 15 s in a log."""
    from tqdm import tqdm  # of an extra

    seconds = 0.2 if sys.stderr.isatty() else 15.0
    options = {"initial": done, "disable": not show, "mininterval": seconds, "maxinterval": seconds}
    return tqdm(iterable, title, total, unit=" videos", **options)


def printable(name: str) -> str:
    """Returns a file name as valid Unicode: bytes that are not UTF-8, which Python keeps as surrogates, are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def dash_advice(arguments: Iterable[str]) -> str:
    """Returns what to do about files whose names begin with `-`, which look like flags; '' if there are none."""
    names = [name for name in arguments if name.startswith("-") and os.path.lexists(name)]
    return f"\n{names[0]!r} is the name of a file: give it as ./{names[0]} or after --" if names else ""
