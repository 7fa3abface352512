"""The videos that the arguments of a command name."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator

from vivit_jax.data.annotations.video_files import list_videos
from vivit_jax.utils import storage


def videos(arguments: Iterable[str]) -> Iterator[str]:
    """Yields the videos of each argument: a file, a folder, or a pattern (`**` for any folders below).

    A folder stands for all videos below it, which may be folders of numbered pictures; one with such pictures is a
    video itself. What does not exist is yielded as it is, and is an error when it is read.
    """
    for argument in arguments:
        found = [argument]
        if not storage.is_remote(argument) and not os.path.lexists(argument):
            found = sorted(glob.glob(argument, recursive=True)) or [argument]
        for path in found:
            below: list[str] = []
            with contextlib.suppress(Exception):  # what cannot be listed is an error when it is read
                below = list_videos(path).videos
            yield from below or [path]
