"""One progress bar for everything that takes a while: live on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(iterable: Iterable | None = None, *, title: str, total: int, done: int = 0, show: bool = True) -> tqdm:
    """A bar of `total` videos of which `done` were there before; iterate over it, or call its `update`."""
    seconds = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        iterable, title, total, unit=" videos", initial=done, disable=not show, mininterval=seconds, maxinterval=seconds
    )
