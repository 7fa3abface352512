"""Moments in Time v1: `class/name.mp4,label,positive,negative` without a header, and `name,id` of each class.

`positive` and `negative` count the workers who agreed and disagreed with the label (its README).
"""

from __future__ import annotations

import os

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage

_FOLDERS = {"train": "training", "validation": "validation"}


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of both splits; raises as `annotations.read`."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.class_file(dataset, folder, "label")
    classes = []
    for line, values in parsing.records_of(class_path):
        if len(values) != 2:
            raise AnnotationError(f"{class_path}, line {line}: {len(values)} values; a class is name,id")
        classes.append((line, values[0].strip(), parsing.integer(class_path, line, "id", values[1])))
    names = parsing.class_list(class_path, classes)
    notes = parsing.check_class_counts(dataset, {"label": names}, class_path)
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows: dict[str, list[Row]] = {}
    for split, path in paths.items():
        unique = parsing.Unique(path, "video")
        rows[split] = []
        for line, values in parsing.records_of(path):
            if len(values) != 4:
                raise AnnotationError(
                    f"{path}, line {line}: {len(values)} values; a row is file,label,positive,negative"
                )
            video, label, *votes = (value.strip() for value in values)
            for column, vote in zip(("positive", "negative"), votes, strict=True):
                parsing.integer(path, line, column, vote)
            if label not in labels:
                raise AnnotationError(f"{path}, line {line}: label {label!r} is not in {class_path.name}")
            unique.add(line, video)
            name = os.path.splitext(video)[0]
            places = ((f"{_FOLDERS[split]}/{name}", True), (name, True))
            rows[split].append(Row(video, None, None, labels[label], split, places))
    return Annotations(rows, {"label": names}, tuple(notes))
