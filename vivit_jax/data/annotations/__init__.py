"""Annotation files in their published formats: rows of each split, class names, and the video file of a row.

    read(dataset, folder)          rows of every split, class names, notes
    VideoFiles(dataset, folder)    finds the video file of a row

Each format has its own module; register a new one in `formats.READERS`.
"""

from vivit_jax.data.annotations.formats import read
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, MissingDataError, Row, missing_message
from vivit_jax.data.annotations.video_files import VideoFiles

__all__ = ["AnnotationError", "Annotations", "MissingDataError", "Row", "VideoFiles", "missing_message", "read"]
