"""Moments in Time v1: CSV files `class/name.mp4,label,positive,negative` without a header, and `name,id` of each class.

`positive` and `negative` count the annotators who agreed and disagreed with the label (its README).
"""

import os

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage

_FOLDERS = {"train": "training", "validation": "validation"}


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both splits."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.required(dataset, folder, dataset.class_files["label"])
    classes = []
    for where, values in parsing.csv_rows(class_path):
        if len(values) != 2:
            raise AnnotationError(f"{where}: {len(values)} values; a class is name,id")
        classes.append((values[0], parsing.integer(where, "id", values[1])))
    names, notes = parsing.class_names(dataset, class_path, classes)
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        unique = parsing.Unique("video")
        for where, values in parsing.csv_rows(path):
            if len(values) != 4:
                raise AnnotationError(f"{where}: {len(values)} values; a row is file,label,positive,negative")
            video, label, *votes = values
            for column, vote in zip(("positive", "negative"), votes, strict=True):
                parsing.integer(where, column, vote)
            if label not in labels:
                raise AnnotationError(f"{where}: label {label!r} is not in {class_path.name}")
            unique.add(where, video)
            name = os.path.splitext(video)[0]
            files = ((f"{_FOLDERS[split]}/{name}", True), (name, True))
            rows[split].append(Row(video, None, None, labels[label], split, files))
    return Annotations(rows, {"label": names}, tuple(notes))
