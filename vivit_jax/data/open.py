"""Opens the training and evaluation data of a run."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from vivit_jax.data import build, paths
from vivit_jax.data.annotations import custom
from vivit_jax.data.config import DataConfig
from vivit_jax.data.records.split import RecordSplit, open_split
from vivit_jax.data.selection.training_set import TrainingSet, evaluation_split, training_set
from vivit_jax.utils import storage


def open_data(data: DataConfig) -> tuple[TrainingSet, RecordSplit]:
    """Opens the training set and the evaluation set, with the same classes; builds missing records (`build.prepare`).

    Raises FileNotFoundError for a missing data set or split, and ValueErrors, among them AnnotationError,
    BadIndexError, EmptySplitError, MixtureError, ClassNamesError and SubsetError.
    """
    if data.video_dir is not None:
        _build_custom(data)
    weights = data.mixture or {data.name: 1.0}
    eval_set = open_split(build.prepare(data.name, data.dir), data.eval_split)
    splits = {name: open_split(build.prepare(name, data.dir), data.train_split) for name in weights}
    train_set = training_set(splits, data.name, weights, data.unknown_classes, data.subset, eval_set)
    return train_set, evaluation_split(eval_set, train_set.class_names, data.subset)[0]


def open_eval_set(
    data: DataConfig, class_names: Mapping[str, Sequence[str]], *, prepare: bool = True
) -> tuple[RecordSplit, dict[str, np.ndarray]]:
    """Opens the evaluation set alone, with the errors of `open_data`; `prepare` builds missing records, if it can."""
    folder = build.prepare(data.name, data.dir) if prepare else build.records_folder(data.name, data.dir)
    split = open_split(folder, data.eval_split)
    return evaluation_split(split, class_names, data.subset)


def _build_custom(data: DataConfig) -> None:
    """Builds the records of a custom data set under `data.dir`, unless they exist.

    The layout is "csv" if `data.annotations` names a list or `data.video_dir` holds one, else one folder per class.
    """
    records = build.records_folder(data.name, data.dir)
    if (records / paths.SUMMARY_FILE).is_file():
        there = storage.path(data.video_dir).exists()
        advice = f"delete them after {data.video_dir} has changed" if there else f"{data.video_dir} is not there"
        logging.info("The records in %s are used; %s.", records, advice)
        if not there:
            return
    has_lists = data.annotations is not None or custom.holds_lists(data.video_dir)
    columns = data.columns and data.columns.split(",")
    form = {"kind": "csv" if has_lists else "folder", "label_separator": data.label_separator, "columns": columns}
    build.build(data.name, data.video_dir, data.annotations, data.dir, build.BuildOptions(**form, fps=data.fps))
