"""Readers of the published formats.

* Kinetics-400, 600, 700: CSV files `label,youtube_id,time_start,time_end,split[,is_cc]`. Labels may be quoted, ids may
  begin with "-". Class ids number the training labels in alphabetical order, as everywhere in the literature.
* EPIC-Kitchens-100: segments of long videos with a verb and a noun, and class files `id,key,instances`.
* Moments in Time v1: CSV files `class/name.mp4,label,positive,negative` without a header (the last two count the
  annotators who agreed and disagreed with the label), and `name,id` of each class.
* Something-Something v2: JSON lists with `id`, `label`, `template`, `placeholders`. The class is the template without
  the square brackets around the placeholders. The test list has only ids; the published answers to it,
  `test-answers.csv` with lines `id;class`, are the test split.
* UCF101: `trainlist01.txt` with lines `Class/v_Class_g01_c01.avi 1`, `testlist01.txt` without the number,
  `classInd.txt` with lines `1 Class`, counted from 1. HMDB51: one file per class, `{class}_test_split1.txt`, with lines
  `name.avi 1` (1: training, 2: test, 0: not in this split). Both have three splits, of which the catalog entry names
  one; its test part is the validation split.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.parsing import AnnotationError, Annotations, MissingDataError, Row
from vivit_jax.utils import storage

KINETICS_COLUMNS, EPIC_COLUMNS = (tuple(parsing.WORDS["published"][name].split()) for name in ("kinetics", "epic"))
_MOMENTS_FOLDERS = {"train": "training", "validation": "validation"}

Entry = tuple[str, str, str, tuple[tuple[str, bool], ...]]  # where, video, class, `Row.names`


def read_kinetics(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads the splits that have labels: a test file without labels is left out, duplicate rows count once."""
    paths = parsing.split_files(dataset, folder)
    tables, notes = {}, []
    for split, path in paths.items():
        # The published test files of some versions have no labels.
        table = parsing.table(path, KINETICS_COLUMNS[split == "test" : 4])
        unlabelled = [where for where, entry in table if not entry.get("label")]
        if not unlabelled:
            tables[split] = table
        elif split == "test":
            notes.append(f"{path}: {len(unlabelled)} rows without a label; the test split is left out")
        else:
            raise AnnotationError(f"{unlabelled[0]}: a row without a label")
    names = sorted({entry["label"] for _, entry in tables["train"]})
    notes += parsing.class_count_notes(dataset, paths["train"], names)
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows = {}
    for split, table in tables.items():
        unique_rows = {}
        for where, entry in table:
            label, video = entry["label"], entry["youtube_id"]
            start, end = (parsing.number(where, key, entry[key]) for key in ("time_start", "time_end"))
            if not video or start < 0:
                raise AnnotationError(f"{where}: youtube_id {video!r} from {start:g} s is no video")
            if label not in labels:
                raise AnnotationError(f"{where}: label {label!r} has no training video")
            segment = f"{video}_{int(start):06d}_{int(end):06d}"
            row = Row(video, start, end, labels[label], split, ((segment, True), (video, False)))
            unique_rows.setdefault((segment, label), row)
        rows[split] = list(unique_rows.values())
        if len(unique_rows) < len(table):
            notes.append(f"{paths[split]}: {len(table) - len(unique_rows)} duplicate rows are ignored")
    return Annotations(rows, {"label": names}, tuple(notes))


def read_epic(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads all splits; not the later `EPIC_100_noun_classes_v2.csv` (for VISOR), with classes without any segment."""
    paths = parsing.split_files(dataset, folder)
    class_names, notes = {}, []
    for head, names in dataset.class_files.items():
        path = parsing.required(dataset, folder, names)
        entries = parsing.table(path, ("id", "key"))
        classes = [(entry["key"], parsing.integer(where, "id", entry["id"])) for where, entry in entries]
        class_names[head], head_notes = parsing.class_names(dataset, path, classes, head)
        notes += head_notes
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        seen: dict[str, str] = {}
        for where, entry in parsing.table(path, EPIC_COLUMNS[:14]):
            video = entry["video_id"]
            _check_unique(seen, where, "narration_id", entry["narration_id"])
            labels = {}
            for head, names in class_names.items():
                labels[head] = parsing.integer(where, f"{head}_class", entry[f"{head}_class"])
                if not 0 <= labels[head] < len(names):
                    known = f"0 to {len(names) - 1} (the classes of {dataset.class_files[head][0]})"
                    raise AnnotationError(f"{where}: {head}_class {labels[head]} is outside {known}")
            start, end = (_seconds(where, entry[key]) for key in ("start_timestamp", "stop_timestamp"))
            if end < start:
                raise AnnotationError(f"{where}: the segment ends at {end} s, before its start at {start} s")
            rows[split].append(Row(video, start, end, labels, split, ((video, False),)))
    return Annotations(rows, class_names, tuple(notes))


def _seconds(where: str, timestamp: str) -> float:
    """Converts "HH:MM:SS.ss" to seconds."""
    parts = timestamp.split(":")
    if len(parts) != 3:
        raise AnnotationError(f"{where}: {timestamp!r} is not a time HH:MM:SS.ss")
    hours, minutes, seconds = (parsing.number(where, "timestamp", part) for part in parts)
    return 3600.0 * hours + 60.0 * minutes + seconds


def _read(
    dataset: catalog.DatasetInfo,
    folder: storage.AnyPath,
    classes: Callable[[storage.AnyPath], Iterable[tuple[str, int]]],
    entries: Callable[[storage.AnyPath, str, list[str]], Iterable[Entry]],
    first_id: int = 0,
) -> Annotations:
    """Reads all splits of whole videos: `classes` reads the file of classes, `entries` that of a split."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.required(dataset, folder, dataset.class_files["label"])
    names, notes = parsing.class_names(dataset, class_path, list(classes(class_path)), first_id=first_id)
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        seen: dict[str, str] = {}
        for where, video, name, files in entries(path, split, names):
            if name not in labels:
                raise AnnotationError(f"{where}: {video} has the class {name!r}, which is not in {class_path.name}")
            _check_unique(seen, where, "video", video)
            rows[split].append(Row(video, None, None, labels[name], split, files))
    return Annotations(rows, {"label": names}, tuple(notes))


def read_moments(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both splits."""

    def classes(path: storage.AnyPath) -> Iterator[tuple[str, int]]:
        for where, (name, class_id) in _rows_of(path, "name,id"):
            yield name, parsing.integer(where, "id", class_id)

    def entries(path: storage.AnyPath, split: str, _: list[str]) -> Iterator[Entry]:
        for where, (video, label, _, _) in _rows_of(path, "file,label,positive,negative"):
            name = os.path.splitext(video)[0]
            yield where, video, label, ((f"{_MOMENTS_FOLDERS[split]}/{name}", True), (name, True))

    return _read(dataset, folder, classes, entries)


def _rows_of(path: storage.AnyPath, columns: str, separator: str = ",") -> Iterator[tuple[str, list[str]]]:
    """Yields (where, values) of the rows of a CSV file with these columns, without a header."""
    for where, values in parsing.csv_rows(path, separator):
        if len(values) != len(columns.split(separator)):
            raise AnnotationError(f"{where}: {len(values)} values; a row is {columns}")
        yield where, values


def read_something(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads the splits; of the test split the answers."""

    def classes(path: storage.AnyPath) -> Iterator[tuple[str, int]]:
        for where, (name, class_id) in parsing.json_entries(path, dict):
            yield name, parsing.integer(where, repr(name), class_id)

    def entries(path: storage.AnyPath, split: str, _: list[str]) -> Iterator[Entry]:
        if split == "test":
            answers = _rows_of(path, "id;class", ";")
            found = ((where, video, name) for where, (video, name) in answers if video != "id")  # a header
        else:
            lists = parsing.json_entries(path, list)
            found = ((where, *(_value(where, entry, key) for key in ("id", "template"))) for where, entry in lists)
        for where, video, template in found:
            yield where, video, template.replace("[", "").replace("]", ""), ((video, True),)

    return _read(dataset, folder, classes, entries)


def _value(where: str, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str | int) or value == "":
        raise AnnotationError(f"{where}: no {key} in {entry!r:.100}; a training or validation list has id and template")
    return str(value)


def read_ucf101(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both parts of a split of UCF101."""

    def classes(path: storage.AnyPath) -> Iterator[tuple[str, int]]:
        for where, content in parsing.lines(path):
            number, _, name = content.partition(" ")
            yield name.strip(), parsing.integer(where, "class number", number)

    def entries(path: storage.AnyPath, split: str, names: list[str]) -> Iterator[Entry]:
        spelling = {name.casefold(): name for name in names}  # copies differ in HandStandPushups
        for where, content in parsing.lines(path):
            video, number = _name_and_number(where, content) if split == "train" else (content, None)
            name = video.split("/")[0]
            name = spelling.get(name.casefold(), name)
            if name in names and number not in (None, names.index(name) + 1):
                raise AnnotationError(f"{where}: {video} has number {number}, its class has {names.index(name) + 1}")
            yield where, video, name, _in_class(video)

    return _read(dataset, folder, classes, entries, first_id=1)


def read_hmdb51(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both parts of a split of HMDB51."""
    patterns = dataset.annotation_files["train"]
    found = ([path for path in folder.glob(pattern) if path.name[0] != "."] for pattern in patterns)
    files = next(filter(None, found), None)
    if files is None:
        raise MissingDataError(f"no {patterns[0]} in {folder}", dataset, annotations=folder)
    path_of_class = {path.name.removesuffix(patterns[0].removeprefix("*")): path for path in files}
    names = sorted(path_of_class)
    notes = parsing.class_count_notes(dataset, files[0].parent, names)
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for label, name in enumerate(names):
        seen: dict[str, str] = {}
        for where, content in parsing.lines(path_of_class[name]):
            video, mark = _name_and_number(where, content)
            if mark not in (0, 1, 2):
                raise AnnotationError(f"{where}: {video} has mark {mark}; it must be 0, 1 or 2")
            _check_unique(seen, where, "video", video)
            if mark:
                split, path = "train" if mark == 1 else "validation", f"{name}/{video}"
                rows[split].append(Row(path, None, None, {"label": label}, split, _in_class(path)))
    return Annotations(rows, {"label": names}, tuple(notes))


def _name_and_number(where: str, content: str) -> tuple[str, int]:
    """Splits "a b.avi 1" into ("a b.avi", 1)."""
    name, _, number = content.rpartition(" ")
    if not name.strip():
        raise AnnotationError(f"{where}: {content!r} is not a file and a number")
    return name.strip(), parsing.integer(where, "the number", number)


def _in_class(video: str) -> tuple[tuple[str, bool], ...]:
    """Returns `Row.names` of a video in the folder of its class, or without that."""
    stem = os.path.splitext(video)[0]
    return (stem, True), (os.path.basename(stem), True)


def _check_unique(seen: dict[str, str], where: str, what: str, value: str) -> None:
    """Raises AnnotationError where a value occurs twice in a file; `seen`: value -> its first place."""
    if (first := seen.setdefault(value, where)) != where:
        raise AnnotationError(f"{where}: {what} {value} is already in {first.rpartition(', ')[2]}")
