"""What the readers of annotations hand over: rows, class names, and the errors of files that are absent or wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vivit_jax.data import catalog
from vivit_jax.utils import storage


class MissingDataError(FileNotFoundError):
    """Annotations or videos are missing; the message says where, what belongs there and how to get it."""


class AnnotationError(ValueError):
    """An annotation file that does not have the columns or values of its format."""


@dataclasses.dataclass(frozen=True, slots=True)  # there may be a million
class Row:
    """One labelled stretch of video.

    Attributes:
      video: name of the video in the annotations (a YouTube id; EPIC's `P01_101`; a path).
      start, end: seconds from the start of that video; None for its start, its end.
      labels: head -> class id, 0 to classes - 1; of a head with several labels at once the ids, rising, or none.
      split: "train", "validation" or "test".
      names: what the file may be called, best first: its name without suffix, with as many of the folders above it as
        tell it from others; each with True where the file holds exactly this stretch (nothing is left to cut).
      file: the very file, where the annotations say it: absolute, or under the videos' folder.
    """

    video: str
    start: float | None
    end: float | None
    labels: Mapping[str, int | tuple[int, ...]]
    split: str
    names: tuple[tuple[str, bool], ...] = ()
    file: str | None = None


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All rows of a data set.

    Attributes:
      rows: split -> rows in the files' order.
      class_names: head -> name of each class id.
      multi_label: heads with several labels at once.
      notes: what a user should know and that is no error: what was left out, what differs from the published facts.
    """

    rows: Mapping[str, list[Row]]
    class_names: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()
    multi_label: frozenset[str] = frozenset()


def missing_message(
    dataset: catalog.DatasetInfo, videos: storage.Place | None = None, annotations: storage.Place | None = None
) -> str:
    """What a user without the data is told: folders looked in, what is expected there, how to get it."""
    wanted = [" or ".join(names[:2]) for names in (*dataset.annotation_files.values(), *dataset.class_files.values())]
    own = dataset.annotation_format in catalog.CUSTOM_KINDS
    lines = [f"{dataset.title}: not all of it was found."]
    if annotations is not None:
        files = catalog.CUSTOM_KINDS[dataset.annotation_format][1] if own else ", ".join(dict.fromkeys(wanted))
        lines.append(f"  looked for annotations in  {annotations}\n    expected there: {files}")
    if videos is not None:
        lines.append(f"  looked for videos in  {videos}\n    expected there: {dataset.video_layout}")
    if not own:
        lines.append(f"  get it from  {dataset.source}")
    name = f"{dataset.annotation_format} --name={dataset.name}" if own else dataset.name
    labels = "" if dataset.annotation_format == "folder" else " --annotations=DIR"
    lines.append(f"  then: python -m vivit_jax.data.build --dataset={name} --videos=DIR{labels} --out=DIR")
    return "\n".join(lines)
