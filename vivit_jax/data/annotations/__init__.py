"""Annotation files in their published form: rows of each split, class names, and the video file of a row.

    read(dataset, folder)          rows of every split, names of the classes, notes
    VideoFiles(dataset, folder)   the file of a row

Each format has a module of its own; a new one is registered in `formats.READERS`.
"""

from vivit_jax.data.annotations.epic import COLUMNS as EPIC_COLUMNS
from vivit_jax.data.annotations.epic import segment_row as epic_row
from vivit_jax.data.annotations.formats import READERS, read
from vivit_jax.data.annotations.kinetics import COLUMNS as KINETICS_COLUMNS
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, MissingDataError, Row, missing_message
from vivit_jax.data.annotations.video_files import VIDEO_SUFFIXES, VideoFiles

__all__ = [
    "EPIC_COLUMNS",
    "KINETICS_COLUMNS",
    "READERS",
    "VIDEO_SUFFIXES",
    "AnnotationError",
    "Annotations",
    "MissingDataError",
    "Row",
    "VideoFiles",
    "epic_row",
    "missing_message",
    "read",
]
