"""Anyone's own videos: a folder per class, or a CSV `path,label[,start,end,split]`.

In a CSV a video may have several labels of a head at once, with a separator between them (`catalog.custom`), or none.

Class ids are the places of the training labels in order: numbers by their value, other names alphabetically. Where the
files name no splits, `VALIDATION_FRACTION` of the videos is held out by a hash of the name, so that the choice is the
same everywhere and stays when videos are added. Where they name a test split but no validation split, the test split is
the validation split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, MissingDataError, Row, missing_message
from vivit_jax.data.annotations.video_files import list_videos
from vivit_jax.utils import storage

VALIDATION_FRACTION = 0.1
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_HEAD = re.compile(r"label(?:_(?P<name>[a-z][a-z0-9_]*))?")


@dataclasses.dataclass
class _Entry:
    """A row before its classes have numbers.

    Attributes:
      path: of the video.
      labels: head -> name of the class; of a head with several labels at once a tuple of names.
      place: where it was read, for messages.
      split: None where the files do not say.
      start, end: seconds; None for all of the video.
    """

    path: str
    labels: Mapping[str, str | tuple[str, ...]]
    place: str
    split: str | None = None
    start: float | None = None
    end: float | None = None

    def names(self, head: str) -> tuple[str, ...]:
        """The classes of `head` that it has."""
        given = self.labels[head]
        return (given,) if isinstance(given, str) else given

    def pairs(self) -> list[tuple[str, str]]:
        """(head, class) of all that it has."""
        return [(head, name) for head in self.labels for name in self.names(head)]


def read_folder(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of a folder per class: `train/{class}/*`, `val/{class}/*`, or without splits `{class}/*`.

    Videos in folders below that of the class belong to the class. Files that are no videos by their suffix, and
    what begins with ".", are left alone.

    Raises:
      MissingDataError: no folder, or no videos in it.
      AnnotationError: folders of splits without one for training, two folders of one split, folders of classes beside
        those of splits, a video outside the folders of classes, a class without training videos.
    """
    top = [name for name in storage.names(folder) if not name.startswith(".") and (folder / name).is_dir()]
    named = {name: _SPLITS[name.lower()] for name in top if name.lower() in _SPLITS}
    if named and "train" not in named.values():
        if len(named) == len(top):
            raise AnnotationError(f"{folder}: folders {', '.join(top)}, but none for training; name it train")
        named = {}  # a class may well be called "test"
    if named and len(named) < len(top):
        others = ", ".join(name for name in top if name not in named)
        raise AnnotationError(
            f"{folder}: {others} beside {', '.join(named)}; either all folders are splits (train, val, test) or all "
            "are classes"
        )
    twice = [split for split, count in Counter(named.values()).items() if count > 1]
    if twice:
        raise AnnotationError(f"{folder}: several folders for {twice[0]}: {', '.join(named)}; keep one of them")
    depth, entries = 2 if named else 1, []
    for file in list_videos(folder):
        path = os.path.relpath(file, folder)
        parts = path.split(os.sep)
        if len(parts) <= depth:
            wanted = "split/class/video" if named else "class/video"
            raise AnnotationError(f"{folder}: {path} is in no folder of a class; the layout is {wanted}")
        entries.append(_Entry(path, {"label": parts[depth - 1]}, path, named[parts[0]] if named else None))
    if not entries:
        raise MissingDataError(missing_message(dataset, videos=folder))
    return _annotations(folder, entries, [])


def read_csv(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of a CSV with a header; `folder` is the file, or a folder with one `.csv`, or with NAME.csv.

    Columns: `path`, absolute, a URI or under the videos' folder; `label` for one head, or a column `label_HEAD` for
    each of several; `start` and `end` in seconds, empty for the whole; `split`: train, val(idation) or test. Other
    columns are noted and not used. With `dataset.label_separator` each head in whose column it occurs has several
    labels at once; an empty field is then a video with none of the classes.

    Raises:
      MissingDataError: no CSV.
      AnnotationError: columns or values that are not as above, a segment of a file twice, a class without training
        videos, a separator that no column has.
    """
    path = folder
    if folder.is_dir():
        found = sorted(folder.glob("*.csv"))
        if not found:
            raise MissingDataError(missing_message(dataset, annotations=folder))
        named = [p for p in found if p.name == f"{dataset.name}.csv"]
        if len(found) > 1 and not named:
            raise AnnotationError(
                f"{folder}: {len(found)} CSV files ({', '.join(p.name for p in found[:5])}); name the one to read with "
                f"--annotations=FILE, or call it {dataset.name}.csv"
            )
        path = (named or found)[0]
    table = parsing.table(path, ("path",))
    columns = list(table[0][1])
    heads = _heads(path, columns)
    known = {"path", "start", "end", "split", *heads.values()}
    notes = [f"{path}: column {name} is not used" for name in columns if name not in known]
    separator = dataset.label_separator
    several = _multi_label(path, heads, [values for _, values in table], separator)
    notes += [f"{path}: head {head} has several labels at once, with {separator!r} between them" for head in several]
    unique, entries = parsing.Unique(path, "the segment"), []
    for line, values in table:
        start, end = (_seconds(path, line, key, values.get(key, "")) for key in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            raise AnnotationError(
                f"{path}, line {line}: end {end:g} s is not after start {start or 0:g} s; both empty mean all of it"
            )
        split = values.get("split")
        if split is not None and split.lower() not in _SPLITS:
            raise AnnotationError(f"{path}, line {line}: split is {split!r}; it must be train, val or test")
        needed = ["path", *(column for head, column in heads.items() if head not in several)]
        empty = [name for name in needed if not values[name]]
        if empty:
            raise AnnotationError(f"{path}, line {line}: {empty[0]} is empty; every row needs a path and its labels")
        unique.add(line, (os.path.normpath(values["path"]), start, end))
        labels = {
            head: _labels_of(path, line, column, values[column], separator) if head in several else values[column]
            for head, column in heads.items()
        }
        split = None if split is None else _SPLITS[split.lower()]
        entries.append(_Entry(values["path"], labels, f"line {line}", split, start, end))
    return _annotations(path, entries, notes, frozenset(several))


def _multi_label(
    path: storage.AnyPath, heads: Mapping[str, str], rows: Sequence[Mapping[str, str]], separator: str | None
) -> list[str]:
    """The heads with several labels at once: those in whose column the separator occurs."""
    if separator is None:
        return []
    found = [head for head, column in heads.items() if any(separator in values[column] for values in rows)]
    if not found:
        raise AnnotationError(
            f"{path}: {separator!r} is in no field of {', '.join(heads.values())}, so that each video has one label; "
            "leave --label_separator out, or give the separator that the file has"
        )
    return found


def _labels_of(path: storage.AnyPath, line: int, column: str, value: str, separator: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in value.split(separator)) if value else ()
    if not all(labels):
        raise AnnotationError(f"{path}, line {line}: {column} is {value!r}, with an empty label beside a {separator!r}")
    if len(set(labels)) < len(labels):
        raise AnnotationError(f"{path}, line {line}: {column} is {value!r}, where a label comes twice")
    return labels


def _heads(path: storage.AnyPath, columns: Sequence[str]) -> dict[str, str]:
    """Head -> its column."""
    heads = {}
    for column in columns:
        match = _HEAD.fullmatch(column)
        if match:
            heads[match["name"] or "label"] = column
        elif column.startswith("label"):
            raise AnnotationError(
                f"{path}: column {column!r}; a head's column is label_ and a name of lower-case letters, digits and _"
            )
    if not heads:
        raise AnnotationError(f"{path}: no column label (or label_HEAD for several heads); found {', '.join(columns)}")
    if "label" in heads and len(heads) > 1:
        raise AnnotationError(
            f"{path}: columns {', '.join(heads.values())}; with several heads each needs a name, as label_verb"
        )
    return heads


def _seconds(path: storage.AnyPath, line: int, column: str, value: str) -> float | None:
    if not value:
        return None
    seconds = parsing.number(path, line, column, value)
    if seconds < 0:
        raise AnnotationError(f"{path}, line {line}: {column} is {value}; seconds count from the start of the video, 0")
    return seconds


def _annotations(
    path: storage.AnyPath, entries: Sequence[_Entry], notes: list[str], several: frozenset[str] = frozenset()
) -> Annotations:
    """Numbers for the classes, a split for every row."""
    if entries[0].split is None:
        held_out = _held_out(entries)
        for entry in entries:
            entry.split = "validation" if os.path.normpath(entry.path) in held_out else "train"
        notes.append(
            f"{path}: names no splits; {len(held_out)} of its videos are the validation split, by a hash of their names"
        )
    splits = {entry.split for entry in entries}
    if "train" not in splits:
        raise AnnotationError(f"{path}: no row of split train; found {', '.join(sorted(splits))}")
    if "test" in splits and "validation" not in splits:
        for entry in entries:
            entry.split = {"test": "validation"}.get(entry.split, entry.split)
        notes.append(f"{path}: has a test split and no validation split; the test split serves as validation")
    class_names = {
        head: sorted({name for entry in entries if entry.split == "train" for name in entry.names(head)}, key=_order)
        for head in entries[0].labels
    }
    ids = {head: {name: number for number, name in enumerate(names)} for head, names in class_names.items()}
    rows: dict[str, list[Row]] = {}
    for entry in sorted(entries, key=lambda entry: ("train", "validation", "test").index(entry.split)):
        for head, name in entry.pairs():
            if name not in ids[head]:
                raise AnnotationError(
                    f"{path}, {entry.place}: {head} {name!r} has no training video; the classes are those of the "
                    f"training split ({len(ids[head])})"
                )
        labels = {
            head: tuple(sorted(ids[head][name] for name in given)) if head in several else ids[head][given]
            for head, given in entry.labels.items()
        }
        row = Row(entry.path, entry.start, entry.end, labels, entry.split, ((entry.path, False),), entry.path)
        rows.setdefault(entry.split, []).append(row)
    return Annotations(rows, class_names, tuple(notes), several)


def _order(name: str) -> tuple[Any, ...]:
    """Sorts whole numbers by value, before all other names."""
    return (0, int(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0, name)


def _held_out(entries: Sequence[_Entry]) -> set[str]:
    """Paths of the validation split: those with the smallest hashes, `VALIDATION_FRACTION` of all and at least one,
    where that leaves every class a training video. All segments of a file stay together."""
    of_path: dict[str, Counter] = {}
    for entry in entries:
        of_path.setdefault(os.path.normpath(entry.path), Counter()).update(entry.pairs())
    left = Counter()
    for labels in of_path.values():
        left.update(labels)
    held_out: set[str] = set()
    for position, path in sorted((_position(path), path) for path in of_path):
        if position >= VALIDATION_FRACTION and held_out:
            break
        if _can_spare(left, of_path[path]):
            left.subtract(of_path[path])
            held_out.add(path)
    return held_out


def _can_spare(left: Mapping[Any, int], labels: Mapping[Any, int]) -> bool:
    return all(left[label] > count for label, count in labels.items())


def _position(path: str) -> float:
    """In [0, 1), from the name alone."""
    digest = hashlib.sha256(path.replace(os.sep, "/").encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
