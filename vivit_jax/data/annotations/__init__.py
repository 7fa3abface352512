"""Annotation files in their published formats: rows of each split, class names, and the video file of a row.

Register the reader of a new format in `READERS`.
"""

import logging
from collections.abc import Callable, Mapping

from vivit_jax.data import catalog
from vivit_jax.data.annotations import custom, published
from vivit_jax.data.annotations.parsing import AnnotationError, Annotations, MissingDataError, Row
from vivit_jax.data.annotations.video_files import VideoFiles
from vivit_jax.utils import storage

# `DatasetInfo.annotation_format` -> its reader.
READERS: Mapping[str, Callable[[catalog.DatasetInfo, storage.AnyPath], Annotations]] = {
    "kinetics_csv": published.read_kinetics,
    "epic_csv": published.read_epic,
    "moments_csv": published.read_moments,
    "something_json": published.read_something,
    "ucf_lists": published.read_ucf101,
    "hmdb_lists": published.read_hmdb51,
    "folder": custom.read_folder,
    "csv": custom.read_csv,
}


def read(dataset: catalog.DatasetInfo, folder: storage.PathLike) -> Annotations:
    """Reads the annotations of every split whose file is in `folder`, and logs the notes as warnings.

    Of format "folder", `folder` is that of the videos; of format "csv", it may be the file itself. Raises
    MissingDataError or AnnotationError; of the splits, only the training split is required.
    """
    folder = storage.path(folder)
    if not (folder.is_dir() or (dataset.annotation_format == "csv" and folder.is_file())):
        raise MissingDataError(f"no {folder}", dataset, annotations=folder)
    result = READERS[dataset.annotation_format](dataset, folder)
    for note in result.notes:
        logging.getLogger(__name__).warning(note)
    return result
