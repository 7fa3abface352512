"""Opens the training and evaluation data of a run."""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from vivit_jax.data import build, catalog, paths
from vivit_jax.data.config import DataConfig
from vivit_jax.data.records.split import RecordSplit, open_split
from vivit_jax.data.selection.training_set import TrainingSet, evaluation_split, training_set


def open_data(data: DataConfig) -> tuple[TrainingSet, RecordSplit]:
    """Opens the training set and the evaluation set, with the same classes; builds a custom data set if missing.

    Raises FileNotFoundError for a missing data set, MixtureError, ClassNamesError, SubsetError.
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
    """Opens the evaluation set alone, by `evaluation_split`; `prepare` builds the embedded data set if missing."""
    folder = build.prepare(data.name, data.dir) if prepare else build.records_folder(data.name, data.dir)
    split = open_split(folder, data.eval_split)
    return evaluation_split(split, class_names, data.subset)


def _build_custom(data: DataConfig) -> None:
    """Builds the records of a custom data set under `data.dir`, unless they exist.

    The layout is a CSV if `data.annotations` names one or `data.video_dir` contains one, else one folder per class.
    """
    has_csv = data.annotations is not None or any(epath.Path(data.video_dir).glob("*.csv"))
    kind = "csv" if has_csv else "folder"
    columns = data.columns and data.columns.split(",")
    try:
        catalog.custom(data.name, kind, data.label_separator, columns)
    except ValueError as error:
        problem = f"config.data.video_dir={data.video_dir} needs a config.data.name of its own"
        raise ValueError(f"{problem}: {error}") from error
    if not (build.records_folder(data.name, data.dir) / paths.SUMMARY_FILE).is_file():
        logging.info("Building the records of %s from %s, once.", data.name, data.video_dir)
    options = build.BuildOptions(kind=kind, label_separator=data.label_separator, columns=columns, fps=data.fps)
    build.build(data.name, data.video_dir, data.annotations, data.dir, options)
