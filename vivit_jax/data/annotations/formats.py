"""The registry of annotation formats: which module reads the files of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vivit_jax.data import catalog
from vivit_jax.data.annotations import custom, epic, kinetics, moments, something, ucf_hmdb
from vivit_jax.data.annotations.rows import Annotations, MissingDataError, missing_message
from vivit_jax.utils import storage

# `DatasetInfo.annotation_format` -> its reader.
READERS: Mapping[str, Callable[[catalog.DatasetInfo, storage.AnyPath], Annotations]] = MappingProxyType(
    {
        "kinetics_csv": kinetics.read,
        "epic_csv": epic.read,
        "moments_csv": moments.read,
        "something_json": something.read,
        "ucf_lists": ucf_hmdb.read_ucf101,
        "hmdb_lists": ucf_hmdb.read_hmdb51,
        "folder": custom.read_folder,
        "csv": custom.read_csv,
    }
)


def read(dataset: catalog.DatasetInfo, folder: storage.Place) -> Annotations:
    """The rows of every split whose file is in `folder`, in the format of that data set.

    Args:
      dataset: from the catalog, or `catalog.custom`.
      folder: of the annotation files; for one's own, that of the videos (format "folder") or the CSV file itself
        ("csv").

    Returns:
      Rows, class names, and notes, which are logged as warnings too. Splits whose official files have no labels are
      left out, and noted.

    Raises:
      MissingDataError: no folder, or a file that is needed is not in it (splits other than training may be absent).
      AnnotationError: columns or values that are not the format's, a label that does not exist, something that may come
        once and comes twice, more classes than the data set has. The message names file, line, value and the way out.
    """
    folder = storage.path(folder)
    if not (folder.is_dir() or (dataset.annotation_format == "csv" and folder.is_file())):
        raise MissingDataError(missing_message(dataset, annotations=folder))
    found = READERS[dataset.annotation_format](dataset, folder)
    for note in found.notes:
        logging.getLogger(__name__).warning(note)
    return found
