"""From a row of the annotations to the video file that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from vivit_jax.data import catalog
from vivit_jax.data.annotations.rows import MissingDataError, Row, missing_message
from vivit_jax.utils import storage

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg")


def list_videos(folder: storage.Place) -> Iterator[str]:
    """Paths of the files below `folder` that are videos by their suffix, `folder` first in each; in order of folders
    and names. Links are followed, but no folder into itself; what begins with "." (as the `._x.mp4` beside each
    `x.mp4` on some disks) is left alone. In a bucket what goes by the name of a video is taken for a file: to ask for
    each would take hours.

    Raises:
      PermissionError: a folder that may not be read. A `folder` that does not exist has no videos.
    """
    if storage.is_remote(folder):
        yield from _list_remote(storage.path(folder))
        return
    above: dict[str, frozenset] = {}
    for root, folders, names in os.walk(folder, onerror=_refused, followlinks=True):
        status = os.stat(root)
        place, entered = (status.st_dev, status.st_ino), above.pop(root, frozenset())
        if place in entered:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        above.update((os.path.join(root, name), entered | {place}) for name in folders)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield os.path.join(root, name)


def _list_remote(folder: storage.AnyPath) -> Iterator[str]:
    folders = []
    for name in storage.names(folder):
        if name.startswith("."):
            continue
        if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
            yield str(folder / name)
        else:
            folders.append(folder / name)
    for below in folders:
        yield from _list_remote(below)


def _refused(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


class VideoFiles:
    """Finds the files of rows under one folder, whose listing is read once.

    A name of a row fits a file whose path ends in it, part by part: `clapping/x` fits `training/clapping/x.mp4`. Of
    several files the one with the fewest folders above it is taken, then the first in alphabetical order. Files in the
    folders of `dataset.replacements`, below the videos' folder or beside it, go before all others.

    Args:
      dataset: of the data set.
      folder: of the videos.

    Raises:
      MissingDataError: the folder is absent or holds no video at all (a CSV may name files elsewhere).
    """

    def __init__(self, dataset: catalog.DatasetInfo, folder: storage.Place):
        self.folder, self._dataset = storage.path(folder), dataset
        # Name without folders and suffix -> files of that name. One entry a file: there may be a million.
        self._files: dict[str, list[str]] = {}
        self._list(self.folder)
        if not self._files and dataset.annotation_format != "csv":
            raise MissingDataError(missing_message(dataset, videos=folder))
        for name in dataset.replacements:
            beside = storage.absolute(self.folder).parent
            for place in (beside / name, beside / "replacement" / name):
                self._list(place)
        for files in self._files.values():
            if len(files) > 1:
                files.sort(key=lambda file: (_parent(file) not in dataset.replacements, file.count(os.sep), file))

    def _list(self, folder: storage.AnyPath) -> None:
        for file in list_videos(folder):
            self._files.setdefault(os.path.splitext(os.path.basename(file))[0], []).append(file)

    def find(self, row: Row) -> tuple[storage.AnyPath, float | None, float | None] | None:
        """(file, start, end) of a row; start and end are None where the file holds just this stretch. None: absent."""
        file = None if row.file is None else self._named(row.file)
        if file is not None:
            return file, row.start, row.end
        for name, trimmed in row.names:
            ending = os.path.join(os.sep, os.path.normpath(name))
            for file in self._files.get(os.path.basename(name), ()):
                if os.path.splitext(os.path.join(os.sep, file))[0].endswith(ending):
                    return storage.path(file), None if trimmed else row.start, None if trimmed else row.end
        return None

    def _named(self, name: str) -> storage.AnyPath | None:
        """The very file that the annotations name, absolute or under the folder; None where it is not there."""
        file = storage.under(self.folder, name)
        if storage.is_remote(file) and str(file) in self._files.get(file.stem, ()):
            return file  # listed before, which saves a request
        return file if file.is_file() else None

    def check(self, rows: Iterable[Row]) -> None:
        """Makes sure that the folder is the right one.

        Raises:
          MissingDataError: not one of `rows` has its file here; says what was looked for and what is there.
        """
        wanted = None
        for row in rows:
            if self.find(row):
                return
            wanted = wanted or row.file or row.names[0][0]
        if wanted:
            there = next((files[0] for files in self._files.values()), "no video")
            raise MissingDataError(
                f"none of the videos that the annotations name is in {self.folder}: looked for {wanted}, found there "
                f"{there} and the like.\n{missing_message(self._dataset, videos=self.folder)}"
            )


def _parent(file: str) -> str:
    return os.path.basename(os.path.dirname(file))
