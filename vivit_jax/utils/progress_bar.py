"""A tqdm progress bar for terminals and logs; imports neither jax nor clu, so that `data/` can use it."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(iterable: Iterable | None = None, *, title: str, total: int, done: int = 0, show: bool = True) -> tqdm:
    """Returns a bar over `total` videos, `done` of them processed; live in a terminal, every 15 seconds in a log."""
    seconds = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        iterable, title, total, unit=" videos", initial=done, disable=not show, mininterval=seconds, maxinterval=seconds
    )
