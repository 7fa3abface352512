"""Rows and class names of a data set, and the errors for missing or malformed files."""

import dataclasses
from collections.abc import Mapping

from vivit_jax.data import catalog
from vivit_jax.utils import storage


class MissingDataError(FileNotFoundError):
    """Annotations or videos are missing."""


class AnnotationError(ValueError):
    """An annotation file does not have the columns or values of its format."""


@dataclasses.dataclass(frozen=True, slots=True)  # up to a million rows
class Row:
    """One labelled segment of a video.

    Attributes:
      labels: head -> class id; of a multi-label head a sorted tuple of ids, which may be empty.
      names: (name, is_cut) of possible files, best first: the name without its suffix, with as many parent folders as
        identify it; `is_cut`: the file contains exactly this segment.
    """

    video: str  # name in the annotations (a YouTube id, `P01_101` of EPIC-Kitchens, a path)
    start: float | None  # seconds; None: the start of the video
    end: float | None
    labels: Mapping[str, int | tuple[int, ...]]
    split: str  # "train", "validation" or "test"
    names: tuple[tuple[str, bool], ...] = ()
    file: str | None = None  # where the annotations state it: absolute, or relative to the folder of the videos


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All rows of a data set."""

    rows: Mapping[str, list[Row]]  # of each split, in the order of the file
    class_names: Mapping[str, list[str]]  # head -> name of each class id
    notes: tuple[str, ...] = ()  # differences from the published data that are no errors, for the log
    multi_label: frozenset[str] = frozenset()  # heads


def missing_message(
    dataset: catalog.DatasetInfo, videos: storage.PathLike | None = None, annotations: storage.PathLike | None = None
) -> str:
    """Returns the error text for missing data: the folders searched, their expected content, how to get it."""
    custom = (kind := dataset.annotation_format) in catalog.CUSTOM_KINDS
    lines = [f"{dataset.title}: data is missing."]
    if annotations is not None:
        names = (*dataset.annotation_files.values(), *dataset.class_files.values())
        files = dict.fromkeys(" or ".join(alternatives[:2]) for alternatives in names)
        expected = catalog.CUSTOM_KINDS[kind][1] if custom else ", ".join(files)
        lines.append(f"  looked for annotations in  {annotations}\n    expected there: {expected}")
    if videos is not None:
        lines.append(f"  looked for videos in  {videos}\n    expected there: {dataset.video_layout}")
    if not custom:
        lines.append(f"  get it from  {dataset.source}")
    name = f"{kind} --name={dataset.name}" if custom else dataset.name
    annotations_flag = "" if kind == "folder" else " --annotations=DIR"
    lines.append(f"  then: python -m vivit_jax.data.build --dataset={name} --videos=DIR{annotations_flag} --out=DIR")
    return "\n".join(lines)
