"""Custom data sets: a folder per class, or a CSV `path,label[,start,end,split]`.

Class ids number the training labels in order: whole numbers by value, then other names alphabetically. Where the files
state no splits, a hash of the path selects `VALIDATION_FRACTION` of the videos for validation: the same on every
machine, and stable when videos are added. A test split without a validation split serves as the validation split.
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
    """A row before its classes have ids; `labels`: head -> class names, `where`: file and line for error messages."""

    path: str
    labels: Mapping[str, tuple[str, ...]]
    where: str
    split: str | None = None  # None where the files do not state it
    start: float | None = None  # seconds; None: the whole video
    end: float | None = None

    def pairs(self) -> list[tuple[str, str]]:
        return [(head, name) for head, names in self.labels.items() for name in names]


def read_folder(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads a folder per class: `train/{class}/*` and `val/{class}/*`, or `{class}/*` without splits.

    A class includes the videos of folders below its own. Other files and hidden files are ignored.
    """
    folders = [name for name in storage.names(folder) if not name.startswith(".") and (folder / name).is_dir()]
    split_of = {name: _SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS}
    if split_of and "train" not in split_of.values():
        if len(split_of) == len(folders):
            raise AnnotationError(f"{folder}: folders {', '.join(folders)}, but none for training; name it train")
        split_of = {}  # a class may be called "test"
    if split_of and len(split_of) < len(folders):
        others = ", ".join(name for name in folders if name not in split_of)
        raise AnnotationError(
            f"{folder}: {others} beside {', '.join(split_of)}; either all folders are splits (train, val, test) or all "
            "are classes"
        )
    for split, count in Counter(split_of.values()).items():
        if count > 1:
            raise AnnotationError(f"{folder}: several folders for {split}: {', '.join(split_of)}; keep one of them")
    depth, layout = (2, "split/class/video") if split_of else (1, "class/video")
    entries = []
    for file in list_videos(folder):
        path = os.path.relpath(file, folder)
        parts = path.split(os.sep)
        if len(parts) <= depth:
            raise AnnotationError(f"{folder}: {path} is in no folder of a class; the layout is {layout}")
        entries.append(_Entry(path, {"label": (parts[depth - 1],)}, f"{folder}, {path}", split_of.get(parts[0])))
    if not entries:
        raise MissingDataError(missing_message(dataset, videos=folder))
    return _annotations(folder, entries, [])


def read_csv(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads a CSV with a header; `folder` is the file, or a folder with one `.csv` or with NAME.csv.

    Columns: `path`, absolute, a URI or relative to the videos' folder; `label` for one head, or a column `label_HEAD`
    for each of several; `start` and `end` in seconds, empty for the whole video; `split`: train, val(idation) or test.
    Other columns are ignored and noted. A head whose column contains `dataset.label_separator` is multi-label; there,
    an empty field is a video without labels.
    """
    path = _csv_file(dataset, folder) if folder.is_dir() else folder
    table = parsing.table(path, ("path",))
    columns, separator = list(table[0][1]), dataset.label_separator
    heads = _heads(path, columns)
    multi_label = frozenset(
        head for head, column in heads.items() if separator and any(separator in values[column] for _, values in table)
    )
    if separator and not multi_label:
        raise AnnotationError(
            f"{path}: {separator!r} is in no field of {', '.join(heads.values())}, so that each video has one label; "
            "omit --label_separator, or give the separator of the file"
        )
    known = {"path", "start", "end", "split", *heads.values()}
    notes = [f"{path}: column {name} is not used" for name in columns if name not in known]
    notes += [f"{path}: head {head} is multi-label, separated by {separator!r}" for head in sorted(multi_label)]
    required = ["path", *(column for head, column in heads.items() if head not in multi_label)]
    unique, entries = parsing.Unique("the segment"), []
    for where, values in table:
        start, end = (_seconds(where, key, values.get(key, "")) for key in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            times = f"end {end:g} s is not after start {start or 0:g} s"
            raise AnnotationError(f"{where}: {times}; leave both empty for the whole video")
        split = values.get("split")
        if split is not None and split.lower() not in _SPLITS:
            raise AnnotationError(f"{where}: split is {split!r}; it must be train, val or test")
        if empty := [name for name in required if not values[name]]:
            raise AnnotationError(f"{where}: {empty[0]} is empty; every row needs a path and its labels")
        unique.add(where, (os.path.normpath(values["path"]), start, end))
        labels = {
            head: _split_labels(where, column, values[column], separator) if head in multi_label else (values[column],)
            for head, column in heads.items()
        }
        entries.append(_Entry(values["path"], labels, where, split and _SPLITS[split.lower()], start, end))
    return _annotations(path, entries, notes, multi_label)


def _csv_file(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> storage.AnyPath:
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise MissingDataError(missing_message(dataset, annotations=folder))
    named = [file for file in files if file.name == f"{dataset.name}.csv"]
    if len(files) > 1 and not named:
        raise AnnotationError(
            f"{folder}: {len(files)} CSV files ({', '.join(file.name for file in files[:5])}); select one with "
            f"--annotations=FILE, or call it {dataset.name}.csv"
        )
    return (named or files)[0]


def _split_labels(where: str, column: str, field: str, separator: str) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in field.split(separator)) if field else ()
    if not all(labels):
        raise AnnotationError(f"{where}: {column} is {field!r}, with an empty label beside a {separator!r}")
    if len(set(labels)) < len(labels):
        raise AnnotationError(f"{where}: {column} is {field!r}, with a duplicate label")
    return labels


def _heads(path: storage.AnyPath, columns: Sequence[str]) -> dict[str, str]:
    """Returns head -> its column."""
    heads = {}
    for column in columns:
        if match := _HEAD.fullmatch(column):
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


def _seconds(where: str, column: str, value: str) -> float | None:
    seconds = parsing.number(where, column, value) if value else None
    if seconds is not None and seconds < 0:
        raise AnnotationError(f"{where}: {column} is {value}; seconds count from the start of the video, 0")
    return seconds


def _annotations(
    path: storage.AnyPath, entries: Sequence[_Entry], notes: list[str], multi_label: frozenset[str] = frozenset()
) -> Annotations:
    """Assigns a split to every row and ids to the classes."""
    if entries[0].split is None:
        held_out = _held_out(entries)
        for entry in entries:
            entry.split = "validation" if os.path.normpath(entry.path) in held_out else "train"
        selection = f"a hash of the path selects {len(held_out)} of the videos for the validation split"
        notes.append(f"{path}: no splits; {selection}")
    splits = {entry.split for entry in entries}
    if "train" not in splits:
        raise AnnotationError(f"{path}: no row of split train; found {', '.join(sorted(splits))}")
    if "test" in splits and "validation" not in splits:
        for entry in entries:
            entry.split = entry.split.replace("test", "validation")
        notes.append(f"{path}: a test split but no validation split; the test split serves as validation")
    train_pairs = {pair for entry in entries if entry.split == "train" for pair in entry.pairs()}
    class_names = {
        head: sorted((name for h, name in train_pairs if h == head), key=_order) for head in entries[0].labels
    }
    ids = {(head, name): number for head, names in class_names.items() for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {}
    for entry in sorted(entries, key=lambda entry: ("train", "validation", "test").index(entry.split)):
        for head, name in entry.pairs():
            if (head, name) not in ids:
                raise AnnotationError(
                    f"{entry.where}: {head} {name!r} has no training video; the classes are those of the training "
                    f"split ({len(class_names[head])})"
                )
        labels = {head: tuple(sorted(ids[head, name] for name in names)) for head, names in entry.labels.items()}
        labels |= {head: class_ids[0] for head, class_ids in labels.items() if head not in multi_label}
        row = Row(entry.path, entry.start, entry.end, labels, entry.split, ((entry.path, False),), entry.path)
        rows.setdefault(entry.split, []).append(row)
    return Annotations(rows, class_names, tuple(notes), multi_label)


def _order(name: str) -> tuple[Any, ...]:
    """Sorts whole numbers by value, before all other names."""
    return (0, int(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0, name)


def _held_out(entries: Sequence[_Entry]) -> set[str]:
    """Selects the paths of the validation split; all segments of a file stay together.

    These are the paths with the smallest hashes, `VALIDATION_FRACTION` of them and at least one, except where a class
    would be left without a training video.
    """
    pairs_of_path: dict[str, Counter] = {}
    for entry in entries:
        pairs_of_path.setdefault(os.path.normpath(entry.path), Counter()).update(entry.pairs())
    remaining = Counter(pair for entry in entries for pair in entry.pairs())
    held_out: set[str] = set()
    for position, path in sorted((_position(path), path) for path in pairs_of_path):
        if position >= VALIDATION_FRACTION and held_out:
            break
        pairs = pairs_of_path[path]
        if all(remaining[pair] > count for pair, count in pairs.items()):
            remaining.subtract(pairs)
            held_out.add(path)
    return held_out


def _position(path: str) -> float:
    """Returns a hash of the path in [0, 1)."""
    digest = hashlib.sha256(path.replace(os.sep, "/").encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
