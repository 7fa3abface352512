"""UCF101 and HMDB51: file lists in three splits, of which the catalog entry names one.

UCF101: `trainlist01.txt` with lines `Class/v_Class_g01_c01.avi 1`, `testlist01.txt` without the number, `classInd.txt`
with lines `1 Class`, counted from 1. HMDB51: one file per class, `{class}_test_split1.txt`, with lines `name.avi 1` (1:
training, 2: test, 0: not in this split). The test part is the validation split.
"""

import os

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, MissingDataError, Row, missing_message
from vivit_jax.utils import storage


def read_ucf101(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both parts of a split of UCF101."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.required(dataset, folder, dataset.class_files["label"])
    classes = []
    for where, content in parsing.lines(class_path):
        number, _, name = content.partition(" ")
        classes.append((name.strip(), parsing.integer(where, "class number", number)))
    names, notes = parsing.class_names(dataset, class_path, classes, first_id=1)
    ids = {name.casefold(): number for number, name in enumerate(names)}  # copies differ in HandStandPushups
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        unique = parsing.Unique("video")
        for where, content in parsing.lines(path):
            video, number = _name_and_number(where, content) if split == "train" else (content, None)
            name = video.split("/")[0].casefold()
            if name not in ids:
                raise AnnotationError(f"{where}: class {video.split('/')[0]!r} of {video} is not in {class_path.name}")
            if number not in (None, ids[name] + 1):
                raise AnnotationError(f"{where}: {video} has number {number}, {class_path.name} has {ids[name] + 1}")
            unique.add(where, video)
            rows[split].append(_row(video, ids[name], split))
    return Annotations(rows, {"label": names}, tuple(notes))


def read_hmdb51(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both parts of a split of HMDB51."""
    patterns = dataset.annotation_files["train"]
    files = next((matches for pattern in patterns if (matches := [*folder.glob(pattern)])), None)
    if files is None:
        hint = parsing.near_misses(folder, [patterns[0].replace("*", "clap")])
        raise MissingDataError(f"no {patterns[0]} in {folder}{hint}.\n{missing_message(dataset, annotations=folder)}")
    path_of_class = {path.name.removesuffix(patterns[0].removeprefix("*")): path for path in files}
    names = sorted(path_of_class)
    notes = parsing.class_count_notes(dataset, files[0].parent, names)
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    unused = 0
    for label, name in enumerate(names):
        unique = parsing.Unique("video")
        for where, content in parsing.lines(path_of_class[name]):
            video, mark = _name_and_number(where, content)
            if mark not in (0, 1, 2):
                raise AnnotationError(f"{where}: {video} has mark {mark}; it must be 0, 1 or 2")
            unique.add(where, video)
            if mark:
                split = "train" if mark == 1 else "validation"
                rows[split].append(_row(f"{name}/{video}", label, split))
            unused += mark == 0
    if unused:
        notes.append(f"{files[0].parent}: {unused} videos are in neither part of this split (mark 0)")
    return Annotations(rows, {"label": names}, tuple(notes))


def _name_and_number(where: str, content: str) -> tuple[str, int]:
    """Splits "a b.avi 1" into ("a b.avi", 1)."""
    name, _, number = content.rpartition(" ")
    if not name.strip():
        raise AnnotationError(f"{where}: {content!r} is not a file and a number")
    return name.strip(), parsing.integer(where, "the number", number)


def _row(video: str, label: int, split: str) -> Row:
    stem = os.path.splitext(video)[0]
    return Row(video, None, None, {"label": label}, split, ((stem, True), (os.path.basename(stem), True)))
