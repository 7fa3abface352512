"""Opens the training and the evaluation data of a run."""

from __future__ import annotations

from absl import logging
from etils import epath

from vivit_jax.data import build, catalog, paths
from vivit_jax.data.config import DataConfig
from vivit_jax.data.records.split import RecordSplit, open_split
from vivit_jax.data.selection import training_set


def open_data(data: DataConfig) -> tuple[training_set.TrainingSet, RecordSplit]:
    """What is trained on and what is evaluated, with the same classes.

    The records of one's own videos (`config.data.videos`) are made first, where they are absent.

    Raises:
      FileNotFoundError: a data set is not there; the message says what belongs where.
      MixtureError, SubsetError: data sets that cannot be mixed, a selection of what is not there.
    """
    if data.videos is not None:
        build_own(data)
    mixed = data.mixture or {data.name: 1.0}
    held_out = open_split(build.prepare(data.name, data.dir), data.eval_split)
    splits = {name: open_split(build.prepare(name, data.dir), data.train_split) for name in mixed}
    training = training_set.training_set(splits, data.name, mixed, data.unknown_classes, data.subset, held_out)
    return training, training_set.evaluation_split(held_out, training.class_names, data.subset)


def build_own(data: DataConfig) -> None:
    """Makes the records of a folder of one's own videos under `data.dir`, unless they are there.

    They are taken by a CSV where `data.annotations` names one or one lies in the folder, else by the folder of each
    class.

    Raises:
      ValueError: `data.name` cannot be used for one's own.
      annotations.MissingDataError, annotations.AnnotationError: no videos, or a layout that cannot be understood.
    """
    listed = data.annotations is not None or any(epath.Path(data.videos).glob("*.csv"))
    try:
        catalog.custom(data.name, "csv" if listed else "folder", label_separator=data.label_separator)
    except ValueError as error:
        wrong = f"config.data.videos={data.videos} needs a config.data.name of its own"
        raise ValueError(f"{wrong}: {error}") from error
    if not (build.records_folder(data.name, data.dir) / paths.SUMMARY_FILE).is_file():
        logging.info("The records of %s are made from %s, once.", data.name, data.videos)
    kind, separator = "csv" if listed else "folder", data.label_separator
    build.build(data.name, data.videos, data.annotations, data.dir, kind=kind, label_separator=separator)
