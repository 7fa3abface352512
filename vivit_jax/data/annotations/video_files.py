"""Finds the video file of a row of the annotations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vivit_jax.data import catalog
from vivit_jax.data.annotations.rows import MissingDataError, Row, missing_message
from vivit_jax.utils import storage

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg")


def list_videos(folder: storage.PathLike) -> Iterator[str]:
    """Yields the paths of the videos (by their suffix) in `folder`, sorted, then those of each folder below it.

    Links are followed, hidden files and folders are skipped. A folder that does not exist has no videos.
    """
    remote = storage.is_remote(folder)
    return _list_remote(storage.path(folder)) if remote else _list_local(os.fspath(folder), frozenset())


def _list_local(folder: str, parents: frozenset[str]) -> Iterator[str]:
    real_path = os.path.realpath(folder)
    if real_path in parents or not os.path.isdir(folder):  # a link to one of its parents would never end
        return
    # Hidden files: some disks have a `._x.mp4` beside each `x.mp4`.
    entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    yield from (entry.path for entry in entries if _is_video(entry.name) and not entry.is_dir())
    for entry in entries:
        if entry.is_dir():
            yield from _list_local(entry.path, parents | {real_path})


def _list_remote(folder: storage.AnyPath) -> Iterator[str]:
    """Lists a bucket; takes every name with the suffix of a video for a file, as a request for each takes too long."""
    paths = [folder / name for name in storage.names(folder) if name[0] != "."]
    yield from (str(path) for path in paths if _is_video(path.name))
    for path in paths:
        if not _is_video(path.name):
            yield from _list_remote(path)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


class VideoFiles:
    """The video files below one folder, which is listed once.

    A name matches a file whose path ends in it, by whole parts: `clapping/x` matches `training/clapping/x.mp4`. Of
    several files, the one with the fewest parent folders wins, then the first in alphabetical order. Files in the
    folders `dataset.replacements`, below the videos' folder or beside it, win over all others. Only a CSV, which may
    name files elsewhere, needs no video in the folder.
    """

    def __init__(self, dataset: catalog.DatasetInfo, folder: storage.PathLike):
        self.folder, self._dataset = storage.path(folder), dataset
        # Name without folders and suffix -> files of that name.
        self._files: dict[str, list[str]] = {}
        self._add(self.folder)
        if not self._files and dataset.annotation_format != "csv":
            raise MissingDataError(missing_message(dataset, videos=folder))
        parent = storage.absolute(self.folder).parent
        for name in dataset.replacements:
            for beside in (parent / name, parent / "replacement" / name):
                self._add(beside)
        for files in self._files.values():
            files.sort(key=lambda file: (Path(file).parent.name not in dataset.replacements, file.count(os.sep), file))

    def _add(self, folder: storage.AnyPath) -> None:
        for file in list_videos(folder):
            self._files.setdefault(os.path.splitext(os.path.basename(file))[0], []).append(file)

    def find(self, row: Row) -> tuple[storage.AnyPath, float | None, float | None] | None:
        """Returns (file, start, end), or None without a file; start and end are None where the file is the segment."""
        if row.file is not None:
            file = storage.under(self.folder, row.file)
            # A file of a bucket that was listed needs no further request.
            listed = storage.is_remote(file) and str(file) in self._files.get(file.stem, ())
            if listed or file.is_file():
                return file, row.start, row.end
        for name, is_cut in row.names:
            ending = os.path.join(os.sep, os.path.normpath(name))
            for file in self._files.get(os.path.basename(name), ()):
                if os.path.splitext(os.path.join(os.sep, file))[0].endswith(ending):
                    return storage.path(file), None if is_cut else row.start, None if is_cut else row.end
        return None

    def check(self, rows: Iterable[Row]) -> None:
        """Raises MissingDataError if no row has its file here: the folder is a wrong one."""
        rows = list(rows)
        if rows and not any(map(self.find, rows)):
            expected = rows[0].file or rows[0].names[0][0]
            example = next((files[0] for files in self._files.values()), "no video")
            raise MissingDataError(
                f"none of the videos in the annotations is in {self.folder}: looked for {expected}, found there "
                f"{example} and the like.\n{missing_message(self._dataset, videos=self.folder)}"
            )
