"""Custom data sets: a folder per class, or lists of videos and labels (`lists.py`).

Class ids number the training labels in order: whole numbers by value, then other names alphabetically. Where the files
state no splits, a hash of the path, or of the group where a list has such a column (speaker, source video), selects
`VALIDATION_FRACTION` of the videos for validation: the same on every machine, and nearly so when videos are added. A
test split without a validation split serves as the validation split.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import lists, parsing
from vivit_jax.data.annotations.parsing import AnnotationError, Annotations, MissingDataError, Row
from vivit_jax.data.annotations.video_files import entries_of, list_videos
from vivit_jax.utils import storage, terminal

VALIDATION_FRACTION = 0.1
_FEW = 1000  # videos, of less than which twice that share is held out
_MOST_OF_GROUPS = 0.3  # share of the videos
_LIST = re.compile(r"(?!\.)(.*\.csv|.*(train|val|test|list).*\.(txt|tsv|list))")  # not a hidden file
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
    group: str | None = None

    @property
    def unit(self) -> str:
        """What is never divided between splits: the group, or the file."""
        return f"group {self.group}" if self.group else os.path.normpath(self.path)

    def pairs(self) -> list[tuple[str, str]]:
        return [(head, name) for head, names in self.labels.items() for name in names]


def read_folder(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads a folder per class: `train/{class}/*` and `val/{class}/*`, or `{class}/*` without splits.

    A class includes the videos of folders below its own. Other files and hidden files are ignored. Where no video is in
    a folder of a class, `*` or `train/*` and `val/*`, they have no labels.
    """
    _, folders = entries_of(folder)
    split_of = {name: parsing.SPLITS[name.lower()] for name in folders if name.lower() in parsing.SPLITS}
    if split_of and "train" not in split_of.values():
        if len(split_of) == len(folders):
            raise AnnotationError(f"{folder}: folders {', '.join(folders)}, but none for training; name it train")
        split_of = {}  # a class may be called "test"
    if split_of and len(split_of) < len(folders):
        others = ", ".join(name for name in folders if name not in split_of)
        expected = "either all folders are splits (train, val, test) or all are classes"
        raise AnnotationError(f"{folder}: {others} beside {', '.join(split_of)}; {expected}")
    if len(set(split_of.values())) < len(split_of):
        raise AnnotationError(f"{folder}: several folders for one split: {', '.join(split_of)}; keep one for each")
    depth, layout = (2, "split/class/video") if split_of else (1, "class/video")
    listing = list_videos(folder)
    if not listing.videos:
        others = f", but {listing.others()}" if listing.left_alone else ""
        raise MissingDataError(f"no video in {folder}{others}", dataset, videos=folder)
    entries, paths = [], [os.path.relpath(file, folder) for file in listing.videos]
    unlabelled = all(path.count(os.sep) < depth for path in paths)
    notes = [f"{folder}: the {len(paths)} videos are in no folders of classes: they have no labels"] * unlabelled
    for file, path in zip(listing.videos, paths, strict=True):
        parts = terminal.printable(path).split(os.sep)
        if len(parts) <= depth and not unlabelled:
            hint = f"; a video of pictures needs a folder of its own, {layout}/00001.jpg"
            layout += hint if file in listing.frame_folders else ""
            raise AnnotationError(f"{folder}: {'/'.join(parts)} is in no folder of a class; the layout is {layout}")
        labels = {} if unlabelled else {"label": (unicodedata.normalize("NFC", parts[depth - 1]),)}
        entries.append(_Entry(path, labels, f"{folder}, {path}", split_of.get(parts[0])))
    with_videos = {tuple(entry.path.split(os.sep)[:depth]) for entry in entries}
    all_classes = [(name,) for name in folders]
    if split_of:
        all_classes = [(split, name) for split in folders for name in entries_of(folder / split)[1]]
    empty = [folder.joinpath(*parts) for parts in all_classes if parts not in with_videos]
    notes += [f"{path}: no video in this folder of a class" for path in empty]
    return _annotations(folder, entries, notes)


def read_csv(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads a list; `folder` is the file, or a folder with one list, with NAME.csv, or with one for each split.

    Columns: `path`, absolute, a URI or relative to the videos' folder; `label` for one head, or a column `label_HEAD`
    for each of several, or none; `start` and `end` in seconds, empty for the whole video; `split`: train, val(idation)
    or test; `group`: its videos stay together where no split is stated. Other columns are ignored and noted;
    without labels they are an error. A head whose column contains `dataset.label_separator` is multi-label; there, an
    empty field is a video without labels.
    """
    notes: list[str] = []
    files = _list_files(dataset, folder, notes) if folder.is_dir() else {None: folder}
    path, separator = next(iter(files.values())), dataset.label_separator
    table, heads = [], {}
    for split, file in files.items():
        rows, columns, form = lists.read(file, dataset.columns, separator)
        found = _heads(file, columns)
        if split == "test" and heads and not found:
            notes.append(f"{file}: no column label; the test split is left out")
            continue
        if table and found != heads:
            before = ", ".join(heads.values()) or "no labels"
            raise AnnotationError(f"{file}: columns {', '.join(columns)}; {path} has {before}")
        heads = found
        known = {"path", "start", "end", "group", "-", *heads.values(), *(() if split else ("split",))}
        unused = [name for name in columns if name not in known]
        if unused and not heads:
            shown = f"no column label (or label_HEAD for several heads); found {', '.join(columns)}"
            raise AnnotationError(f"{file}: {shown}; {lists.HINT}; videos without labels have none of these")
        notes += [f"{file}: {form}"] if form else []
        notes += [f"{file}: column {name} is not used" for name in unused]
        table += [(where, values | {"split": split} if split else values) for where, values in rows]
    listed = (head for head, column in heads.items() if separator and any(separator in row[column] for _, row in table))
    multi_label = frozenset(listed)
    if separator and not multi_label:
        advice = "so that each video has one label; omit --label_separator, or give the separator of the file"
        raise AnnotationError(f"{path}: {separator!r} is in no field of {', '.join(heads.values())}, {advice}")
    notes += [f"{path}: head {head} is multi-label, separated by {separator!r}" for head in sorted(multi_label)]
    required = ["path", *(column for head, column in heads.items() if head not in multi_label)]
    entries: dict[Any, _Entry] = {}
    for where, values in table:
        start, end = (_seconds(where, key, values.get(key, "")) for key in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            times = f"end {end:g} s is not after start {start or 0:g} s"
            raise AnnotationError(f"{where}: {times}; leave both empty for the whole video")
        split = values.get("split")
        if split is not None and split.lower() not in parsing.SPLITS:
            raise AnnotationError(f"{where}: split is {split!r}; it must be train, val or test")
        if empty := [name for name in required if not values[name]]:
            raise AnnotationError(f"{where}: {empty[0]} is empty; every row needs a path and its labels")
        labels = {head: (values[column],) for head, column in heads.items()}
        labels |= {head: _split_labels(where, heads[head], values[heads[head]], separator) for head in multi_label}
        split = split and parsing.SPLITS[split.lower()]
        entry = _Entry(values["path"], labels, where, split, start, end, values.get("group"))
        name = os.path.normpath(entry.path)
        earlier = entries.setdefault((name, start, end, entry.split), entry)
        if earlier.labels != labels:
            segment = ", ".join([name, *(f"{seconds:g}" for seconds in (start, end) if seconds is not None)])
            advice = "several labels of a video belong into one row, with --label_separator"
            line = earlier.where.rpartition(", ")[2]
            raise AnnotationError(f"{where}: the segment {segment} is already in {line} with another label; {advice}")
    if duplicates := len(table) - len(entries):
        notes.append(f"{path}: {duplicates} duplicate rows are ignored")
    return _annotations(path, list(entries.values()), notes, multi_label)


def holds_lists(folder: storage.PathLike) -> bool:
    """Returns whether a folder holds a CSV, or another list of a training split."""
    lists = [name for name in map(str.lower, storage.names(folder)) if _LIST.fullmatch(name)]
    return any(name.endswith(".csv") or "train" in name for name in lists)


def _list_files(
    dataset: catalog.DatasetInfo, folder: storage.AnyPath, notes: list[str]
) -> dict[str | None, storage.AnyPath]:
    """Returns split -> list, or None -> the one list of a folder."""
    of_split: dict[str, list[storage.AnyPath]] = {}
    # Other files of text may be anything: a README, the names of the classes.
    files = [folder / name for name in storage.names(folder) if _LIST.fullmatch(name.lower())]
    if named := [file for file in files if file.name == f"{dataset.name}.csv"]:
        return {None: named[0]}
    # train.csv before train.txt and my_train_list.csv.
    for file in sorted(files, key=lambda f: (f.stem.lower() not in parsing.SPLITS, f.suffix.lower() != ".csv")):
        parts = re.split(r"[\W\d_]+|lists?|sets?|splits?", file.stem.lower())
        words = {parsing.SPLITS.get(part) for part in parts} - {None}
        if len(words) == 1:
            of_split.setdefault(*words, []).append(file)
    if "train" in of_split and len(of_split) > 1:
        for split, (best, *others) in of_split.items():
            if others and best.stem.lower() not in parsing.SPLITS:
                names = ", ".join(file.name for file in (best, *others))
                raise AnnotationError(f"{folder}: several lists of the {split} split, {names}; keep one, or rename it")
        result = {split: of_split[split][0] for split in ("train", "validation", "test") if split in of_split}
        notes.append(f"{folder}: the splits are {', '.join(file.name for file in result.values())}")
        return result
    files = [file for file in files if file.suffix.lower() == ".csv"] or files
    if not files:
        raise MissingDataError(f"no list in {folder}", dataset, annotations=folder)
    if len(files) > 1:
        advice = f"--annotations=FILE, call it {dataset.name}.csv, or call them train.csv, val.csv and test.csv"
        names = ", ".join(file.name for file in files[:5])
        raise AnnotationError(f"{folder}: {len(files)} CSV files ({names}); select one with {advice}")
    return {None: files[0]}


def _split_labels(where: str, column: str, field: str, separator: str) -> tuple[str, ...]:
    """Returns the labels in a field of a multi-label head; raises AnnotationError for empty or duplicate ones."""
    labels = tuple(label.strip() for label in field.split(separator)) if field else ()
    if not all(labels):
        raise AnnotationError(f"{where}: {column} is {field!r}, with an empty label beside a {separator!r}")
    if len(set(labels)) < len(labels):
        raise AnnotationError(f"{where}: {column} is {field!r}, with a duplicate label")
    return labels


def _heads(path: storage.AnyPath | None, columns: Sequence[str]) -> dict[str, str]:
    """Returns head -> its column."""
    heads = {}
    for column in columns:
        if match := _HEAD.fullmatch(column):
            heads[match["name"] or "label"] = column
        elif column.startswith("label"):
            form = "label_ and a name of lower-case letters, digits and _"
            raise AnnotationError(f"{path}: column {column!r}; a head's column is {form}")
    if "label" in heads and len(heads) > 1:
        found = ", ".join(heads.values())
        raise AnnotationError(f"{path}: columns {found}; with several heads each needs a name, as label_verb")
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
    grouped: dict[str, set[str | None]] = {}
    for entry in entries:
        grouped.setdefault(entry.group or "", set()).add(entry.split)
    grouped.pop("", None)
    if entries[0].split is None:
        held_out = _held_out(entries, grouped=bool(grouped))
        for entry in entries:
            entry.split = "validation" if entry.unit in held_out else "train"
        if grouped and not held_out:
            raise AnnotationError(f"{path}: no group leaves every class a training video; state the splits in a column")
        what, all_units = ("group", f"the {len(grouped)} groups") if grouped else ("path", "the videos")
        selection = f"a hash of the {what} selects {len(held_out)} of {all_units} for the validation split"
        notes.append(f"{path}: no splits; {selection}")
    files: dict[str, set[str | None]] = {}
    for entry in entries:
        if (entry.start, entry.end) == (None, None):
            files.setdefault(os.path.normpath(entry.path), set()).add(entry.split)
    for what, splits_of in (("groups", grouped), ("videos", files)):
        if shared := sorted(name for name, splits in splits_of.items() if len(splits) > 1):
            notes.append(f"{path}: {len(shared)} {what} are in several splits, first {shared[0]}")
    splits = {entry.split for entry in entries}
    if "train" not in splits:
        raise AnnotationError(f"{path}: no row of split train; found {', '.join(sorted(splits))}")
    if "test" in splits and "validation" not in splits:
        for entry in entries:
            entry.split = entry.split.replace("test", "validation")
        notes.append(f"{path}: a test split but no validation split; the test split serves as validation")
    train_pairs = {pair for entry in entries if entry.split == "train" for pair in entry.pairs()}
    class_names = {head: sorted((n for h, n in train_pairs if h == head), key=_order) for head in entries[0].labels}
    for head, names in class_names.items():
        if names and all(re.fullmatch(r"\d+", name) for name in names) and names[-1] != str(len(names) - 1):
            numbers = f"the numbers {names[0]} to {names[-1]}"
            notes.append(f"{path}: the {len(names)} classes of {head} are {numbers}; their ids begin at 0")
    ids = {(head, name): number for head, names in class_names.items() for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {}
    for entry in sorted(entries, key=lambda entry: ("train", "validation", "test").index(entry.split)):
        for head, name in entry.pairs():
            if (head, name) not in ids:
                known = f"the classes are those of the training split ({len(class_names[head])})"
                raise AnnotationError(f"{entry.where}: {head} {name!r} has no training video; {known}")
        labels = {head: tuple(sorted(ids[head, name] for name in names)) for head, names in entry.labels.items()}
        labels |= {head: class_ids[0] for head, class_ids in labels.items() if head not in multi_label}
        row = Row(terminal.printable(entry.path), entry.start, entry.end, labels, entry.split, file=entry.path)
        rows.setdefault(entry.split, []).append(row)
    return Annotations(rows, class_names, tuple(notes), multi_label)


def _order(name: str) -> tuple[Any, ...]:
    """Sorts whole numbers by value, before all other names."""
    return (0, int(name), name) if re.fullmatch(r"-?\d+", name) else (1, 0, name)


def _held_out(entries: Sequence[_Entry], grouped: bool) -> set[str]:
    """Selects the units of the validation split: files, all segments of one together, or groups.

    These are the files with the smallest hashes, `VALIDATION_FRACTION` of them (of less than `_FEW` twice that), half
    that share of each class of five or more, and one at least, but no class's last. Groups, which may be few and large,
    are taken in the order of their hashes, up to that fraction and one of every class, at most `_MOST_OF_GROUPS`.
    """
    fraction = VALIDATION_FRACTION * (2 if len(entries) < _FEW else 1)
    pairs_of_unit: dict[str, Counter] = {}
    for entry in entries:
        pairs_of_unit.setdefault(entry.unit, Counter()).update(entry.pairs())
    sizes = Counter(entry.unit for entry in entries)
    remaining = Counter(pair for entry in entries for pair in entry.pairs())
    held_out: set[str] = set()
    held_pairs: Counter = Counter()
    least = {pair: max(1, round(fraction * n / 2)) for pair, n in remaining.items() if n >= 5}
    names = {unit: unit.replace(os.sep, "/").encode("utf-8", "surrogateescape") for unit in pairs_of_unit}
    digests = {hashlib.sha256(name).digest(): unit for unit, name in names.items()}
    videos = 0
    for digest, unit in sorted(digests.items()):
        pairs = pairs_of_unit[unit]
        wanted = int.from_bytes(digest[:7], "big") / 2**56 < fraction
        wanted |= any(held_pairs[pair] < least.get(pair, 0) for pair in pairs)
        if grouped:
            wanted = videos < VALIDATION_FRACTION * len(entries) or not pairs.keys() <= held_pairs.keys()
            wanted &= videos + sizes[unit] <= _MOST_OF_GROUPS * len(entries)
        one_is_left = len(held_out) + 1 < len(digests)  # without labels, no class needs it
        if (wanted or not held_out) and one_is_left and all(remaining[pair] > n for pair, n in pairs.items()):
            remaining.subtract(pairs)
            held_out.add(unit)
            held_pairs.update(pairs)
            videos += sizes[unit]
    return held_out
