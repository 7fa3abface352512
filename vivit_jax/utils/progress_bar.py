"""A tqdm progress bar for terminals and logs; imports neither jax nor clu, so that `data/` can use it."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(iterable: Iterable | None = None, *, title: str, total: int, done: int = 0, show: bool = True) -> tqdm:
    """Returns a bar over `total` videos of which `done` are processed; iterate over it, or call its `update`.

    A terminal shows it live; a log gets a line every 15 seconds.
    """
    seconds = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        iterable, title, total, unit=" videos", initial=done, disable=not show, mininterval=seconds, maxinterval=seconds
    )
