"""Finds the video file, or folder of frames, of a row of the annotations."""

import dataclasses
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.parsing import MissingDataError, Row
from vivit_jax.data.video.frame_folder import PICTURE_SUFFIXES, frame_names
from vivit_jax.utils import storage

VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in parsing.WORDS["video_suffixes"].split())
# Folders of other programs (archives of macOS, Synology disks).
_SKIPPED_FOLDERS = ("__MACOSX", "@eaDir", "lost+found")


def without_suffix(name: str) -> str:
    """Removes the suffix of a video file; other names stay as they are, as that of a folder `v1.5`."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


@dataclasses.dataclass
class Listing:
    """Everything below a folder."""

    videos: list[str] = dataclasses.field(default_factory=list)  # files and folders of frames, sorted in each folder
    frame_folders: set[str] = dataclasses.field(default_factory=set)
    left_alone: Counter[str] = dataclasses.field(default_factory=Counter)  # suffix -> number of files

    def others(self) -> str:
        """Names the files that are no videos: "3 .txt, 1 without a suffix"; "" if there are none."""
        return ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in self.left_alone.most_common(20))


def list_videos(folder: storage.PathLike) -> Listing:
    """Lists the videos (by their suffix) in `folder`, then those of each folder below it.

    A folder with numbered pictures, and with neither videos nor folders in it, is a video too. Links are followed,
    hidden files and folders are skipped. A folder that does not exist has no videos.
    """
    listing = Listing()
    if storage.is_remote(folder) or os.path.isdir(folder):
        _list(os.fspath(folder), frozenset(), listing)
    return listing


def _list(folder: str, parents: frozenset[str], listing: Listing) -> None:
    real_path = folder if storage.is_remote(folder) else os.path.realpath(folder)
    if real_path in parents:  # a link to one of its parents would never end
        return
    files, folders = entries_of(folder)
    videos = [name for name in files if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    listing.videos += [os.path.join(folder, name) for name in videos]
    if parents and not videos and not folders and _holds_frames(files):
        listing.videos.append(folder)
        listing.frame_folders.add(folder)
        return
    listing.left_alone.update(os.path.splitext(name)[1].lower() for name in set(files).difference(videos))
    for name in folders:
        _list(os.path.join(folder, name), parents | {real_path}, listing)


def entries_of(folder: storage.PathLike) -> tuple[list[str], list[str]]:
    """Returns the sorted names of the files and of the folders in a folder, without those that `list_videos` skips."""
    if storage.is_remote(folder):
        # Names with the suffix of a video or picture count as files, since a request for each takes too long.
        names = storage.names(folder)
        unknown = [n for n in names if os.path.splitext(n)[1].lower() not in VIDEO_SUFFIXES | PICTURE_SUFFIXES]
        are_folders = storage.in_parallel(lambda name: (storage.path(folder) / name).is_dir(), unknown)
        folders = {name for name, is_folder in zip(unknown, are_folders, strict=True) if is_folder}
    else:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
        names, folders = sorted(is_folder), {name for name in is_folder if is_folder[name]}
    # Some disks have a hidden `._x.mp4` beside each `x.mp4`.
    names = [name for name in names if name[0] != "." and name not in _SKIPPED_FOLDERS]
    return [name for name in names if name not in folders], [name for name in names if name in folders]


def _holds_frames(files: Iterable[str]) -> bool:
    try:
        return bool(frame_names(files))
    except ValueError:  # of several videos: a reject that says so, when it is read
        return True


class VideoFiles:
    """The video files below one folder, which is listed once.

    A name matches a file whose path ends in it, by whole parts: `clapping/x` matches `training/clapping/x.mp4`. Of
    several files, the one with the fewest parent folders wins, then the first in alphabetical order; of several in
    different folders, a path in a CSV matches none. Where none has the name, one file that differs in upper and lower
    case or the form of accents is taken. Files in the folders `dataset.replacements`, below the videos' folder or
    beside it, win over all others. Only a CSV, which may name others, needs no video there.

    Attributes:
      first_frames: the first folder of frames that `find` returned; None if there was none.
    """

    def __init__(self, dataset: catalog.DatasetInfo, folder: storage.PathLike):
        self.folder, self._dataset = storage.path(folder), dataset
        self.first_frames: storage.AnyPath | None = None
        self._dropped = 0  # leading parts of the paths in a CSV that are not part of the paths here
        self._frame_folders: set[str] = set()
        # Name without folders and suffix, in lower case -> files of that name.
        self._files: dict[str, list[str]] = {}
        others = self._add(self.folder).others()
        if not self._files and dataset.annotation_format != "csv":
            found = f"no video in {folder}" + (f", but {others} (suffixes of no video)" if others else "")
            raise MissingDataError(found, dataset, videos=folder)
        if others:
            logging.getLogger(__name__).warning("%s: left alone, as no videos by their suffix: %s", folder, others)
        parent = storage.absolute(self.folder).parent
        for name in dataset.replacements:
            for beside in (parent / name, parent / "replacement" / name):
                self._add(beside)
        for files in self._files.values():
            files.sort(key=lambda file: (Path(file).parent.name not in dataset.replacements, file.count(os.sep), file))

    def _add(self, folder: storage.AnyPath) -> Listing:
        listing = list_videos(folder)
        self._frame_folders |= listing.frame_folders
        for file in listing.videos:
            self._files.setdefault(_fold(without_suffix(os.path.basename(file))), []).append(file)
        return listing

    def find(self, row: Row) -> tuple[storage.AnyPath, float | None, float | None] | None:
        """Returns (file, start, end), or None without a file; start and end are None where the file is the segment."""
        stated, names = [], row.names
        if row.file is not None:
            relative = "/".join(_parts(row.file)[self._dropped :])
            stated = [storage.under(self.folder, name) for name in dict.fromkeys((row.file, relative))]
            names = ((without_suffix(relative), False),)
        found = ((file, False) for file in stated if self._is_there(file))
        matches = ((self._match(name, unique=bool(stated)), is_cut) for name, is_cut in names)
        file, is_cut = next(found, None) or next((match for match in matches if match[0]), (None, False))
        if file is None:
            return None
        if self.first_frames is None and (str(file) in self._frame_folders or (stated and os.path.isdir(file))):
            self.first_frames = storage.path(file)
        return storage.path(file), *((None, None) if is_cut else (row.start, row.end))

    def _is_there(self, file: storage.AnyPath) -> bool:
        """Returns whether a path is a file or a folder of frames."""
        if storage.is_remote(file):
            # A file that was listed needs no further request.
            return str(file) in self._candidates(file.name) or file.exists()
        # Not the methods of Path, which raise on names that no file can have.
        if os.path.isfile(file) or str(file) in self._frame_folders:
            return True
        return os.path.isdir(file) and not os.path.samefile(file, self.folder) and _holds_frames(os.listdir(file))

    def _match(self, name: str, unique: bool) -> str | None:
        """Returns the best file whose path ends in `name`; with `unique`, none of several in different folders."""
        name = os.path.normpath(name)
        ending, here = os.path.join(os.sep, name), os.path.join(os.sep, self.folder, name)
        stems = {file: without_suffix(os.path.join(os.sep, file)) for file in self._candidates(name)}
        found = [file for file, stem in stems.items() if stem.endswith(ending)]
        if found and unique:
            found = [file for file in found if stems[file] == here] or found
        elif not found:
            unique, found = True, [file for file, stem in stems.items() if _fold(stem).endswith(_fold(ending))]
        one = len({os.path.dirname(file) for file in found}) == 1
        return found[0] if one or (found and not unique) else None

    def _candidates(self, name: str) -> list[str]:
        return self._files.get(_fold(without_suffix(os.path.basename(name))), [])

    def check(self, rows: Iterable[Row]) -> None:
        """Raises MissingDataError if no row has its file here: the folder is a wrong one.

        If the paths of a CSV begin with folders of another machine, which all have in common, these are dropped.
        """
        rows = list(rows)
        if not rows or any(map(self.find, rows)):
            return
        # Only folders that all paths have in common: otherwise a path could match another video.
        stated = [_parts(row.file)[:-1] for row in rows if row.file is not None]
        same = [len(set(parts)) == 1 for parts in zip(*stated, strict=False)]
        common = stated[0][: (*same, False).index(False)] if stated else []
        for self._dropped in range(1, len(common) + 1):
            if any(map(self.find, rows)):
                prefix = "/".join(common[: self._dropped]).replace("//", "/")
                logging.getLogger(__name__).warning("%s: paths are found here without their %s", self.folder, prefix)
                return
        expected = rows[0].file or rows[0].names[0][0]
        example = next((files[0] for files in self._files.values()), "no video")
        looked = f"none of the videos in the annotations is in {self.folder}: looked for {expected}"
        raise MissingDataError(f"{looked}, found there {example} and the like", self._dataset, videos=self.folder)


def _fold(name: str) -> str:
    """Returns a name without case, and with accents as in most files: archives of macOS have them decomposed (NFD)."""
    return unicodedata.normalize("NFC", name).casefold()


def _parts(path: str) -> list[str]:
    """Splits a path, also one of Windows, at its separators: "/data/a.mp4" into "/", "data" and "a.mp4"."""
    if storage.is_remote(path):
        return [path]
    path = path.replace("\\", "/")
    return ["/"] * path.startswith("/") + [part for part in re.split("/+", path) if part not in ("", ".")]
