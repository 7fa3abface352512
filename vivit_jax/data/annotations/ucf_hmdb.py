"""UCF101 and HMDB51: lists of files, in three splits of which the catalog's entry names one.

UCF101: `trainlist01.txt` with `Class/v_Class_g01_c01.avi 1`, `testlist01.txt` without the number, `classInd.txt` with
`1 Class`, counted from 1. HMDB51: a file a class, `{class}_test_split1.txt`, with `name.avi 1` (1 training, 2 test, 0
not in this split). The test part is the validation split here.
"""

from __future__ import annotations

import os

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, MissingDataError, Row, missing_message
from vivit_jax.utils import storage


def read_ucf101(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of both parts of a split of UCF101; raises as `annotations.read`."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.class_file(dataset, folder, "label")
    classes = []
    for line, content in parsing.lines(class_path):
        number, _, name = content.partition(" ")
        classes.append((line, name.strip(), parsing.integer(class_path, line, "class number", number)))
    names = parsing.class_list(class_path, classes, first_id=1)
    notes = parsing.check_class_counts(dataset, {"label": names}, class_path)
    ids = {name: number for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {}
    for split, path in paths.items():
        unique = parsing.Unique(path, "video")
        rows[split] = []
        for line, content in parsing.lines(path):
            video, label = _name_and_number(path, line, content) if split == "train" else (content, None)
            name = video.split("/")[0]
            if name not in ids:
                raise AnnotationError(f"{path}, line {line}: class {name!r} of {video} is not in {class_path.name}")
            if label is not None and label != ids[name] + 1:
                raise AnnotationError(
                    f"{path}, line {line}: {video} has number {label}, {class_path.name} has {ids[name] + 1}"
                )
            unique.add(line, video)
            rows[split].append(_row(video, ids[name], split))
    return Annotations(rows, {"label": names}, tuple(notes))


def read_hmdb51(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of both parts of a split of HMDB51; raises as `annotations.read`."""
    patterns = dataset.annotation_files["train"]
    found = next((matches for pattern in patterns if (matches := [*folder.glob(pattern)])), None)
    if found is None:
        raise MissingDataError(missing_message(dataset, annotations=folder))
    ending = patterns[0].removeprefix("*")
    of_class = {path.name.removesuffix(ending): path for path in found}
    names = sorted(of_class)
    notes = parsing.check_class_counts(dataset, {"label": names}, found[0].parent)
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    unused = 0
    for label, name in enumerate(names):
        path = of_class[name]
        unique = parsing.Unique(path, "video")
        for line, content in parsing.lines(path):
            video, use = _name_and_number(path, line, content)
            if use not in (0, 1, 2):
                raise AnnotationError(f"{path}, line {line}: {video} has mark {use}; it must be 0, 1 or 2")
            unique.add(line, video)
            if use == 0:
                unused += 1
                continue
            split = "train" if use == 1 else "validation"
            rows[split].append(_row(f"{name}/{video}", label, split))
    if unused:
        notes.append(f"{found[0].parent}: {unused} videos are in neither part of this split (mark 0)")
    return Annotations(rows, {"label": names}, tuple(notes))


def _name_and_number(path: storage.AnyPath, line: int, content: str) -> tuple[str, int]:
    """("a b.avi", 1) of "a b.avi 1"."""
    name, _, number = content.rpartition(" ")
    if not name.strip():
        raise AnnotationError(f"{path}, line {line}: {content!r} is not a file and a number")
    return name.strip(), parsing.integer(path, line, "the number", number)


def _row(video: str, label: int, split: str) -> Row:
    stem = os.path.splitext(video)[0]
    return Row(video, None, None, {"label": label}, split, ((stem, True), (os.path.basename(stem), True)))
