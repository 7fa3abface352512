"""What an evaluation found, and the files in which it leaves that: `evaluation.json`, `predictions.csv`, pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vivit_jax.evaluation import metrics
from vivit_jax.evaluation import predictions as per_video
from vivit_jax.utils import plots

RESULT_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class ViewAblation:
    """What an evaluation would have found with a part of its temporal views, and all spatial views of each.

    Attributes:
      view_indices: numbers of the temporal views that are averaged, as `select_views` chooses them.
      scalars: as those of `Result`, without `mean_class_accuracy`.
    """

    view_indices: tuple[int, ...]
    scalars: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      scalars: `top1`, `top5`, `loss`, `mean_class_accuracy`, or `HEAD/...` for several heads and `action/...`; for a
        head with several labels at once `mean_average_precision` and `loss`.
      confusion: {head: int [C, C]}, rows the truth.
      counted: videos that count in the scalars.
      unreadable: videos of the split that could not be decoded.
      views: (temporal, spatial).
      repeated_views: videos too short or too small for as many views: two of theirs are the same.
      split_size: videos of the whole split, of which those evaluated may be a part; 0 where that is not told.
      predictions: what was found of each video.
      by_views: accuracy against the number of temporal views, by rising number; empty where it was not asked for.
      average_precision: {head: float [C]} of heads with several labels at once; NaN for a class without a video.
    """

    scalars: dict[str, float]
    confusion: dict[str, np.ndarray]
    counted: int
    unreadable: int
    views: tuple[int, int]
    repeated_views: int = 0
    split_size: int = 0
    predictions: per_video.Predictions | None = None
    by_views: tuple[ViewAblation, ...] = ()
    average_precision: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """One line: what was reached, on how many videos, seen how."""
        shares = ("top1", "top5", metrics.MEAN_AVERAGE_PRECISION)
        shown = ", ".join(f"{n} {v:.1%}" for n, v in self.scalars.items() if n.endswith(shares))
        lost = f", {self.unreadable} unreadable" if self.unreadable else ""
        temporal, spatial = self.views
        same = f", of which {self.repeated_views} videos have fewer" if self.repeated_views else ""
        part = f" of {self.split_size}" if self.counted + self.unreadable < self.split_size else ""
        return f"{shown} ({self.counted} videos{part}, each counted once{lost}; {temporal} x {spatial} views{same})"


def write_result(
    workdir: epath.PathLike,
    result: Result,
    checkpoint: epath.PathLike,
    split: str,
    class_names: Mapping[str, Sequence[str]],
    data: Mapping[str, Any] | None = None,
) -> None:
    """Leaves `evaluation.json`, `predictions.csv` and the pictures `pictures/confusion_HEAD.png` in the workdir.

    Numbers that are none (nan, of a class without a video) are null in the JSON. Only process 0 writes.

    Args:
      workdir: made where it is absent.
      result: what was found.
      checkpoint: what was evaluated.
      split: name of the split.
      class_names: {head: names}, by class id.
      data: the config's `data`, by which the report finds the videos; None: they are those of the workdir's config.
    """
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    found = {"checkpoint": str(checkpoint), "split": split, "views": result.views, "videos": result.counted}
    found |= {
        "videos_of_split": result.split_size or result.counted + result.unreadable,
        "unreadable": result.unreadable,
    }
    found |= {"repeated_views": result.repeated_views, "metrics": _finite(result.scalars)}
    found["by_temporal_views"] = [
        {"temporal_views": len(fewer.view_indices), "which": fewer.view_indices, "metrics": _finite(fewer.scalars)}
        for fewer in result.by_views
    ]
    found["data"] = data
    found["classes"] = {head: _of_classes(result, head, names) for head, names in class_names.items()}
    (workdir / RESULT_FILE).write_text(json.dumps(found, indent=1))
    if result.predictions is not None:
        per_video.write(workdir / per_video.FILE, result.predictions, class_names)
    for head, matrix in result.confusion.items():
        figure = plots.confusion_matrix(matrix, class_names[head], f"{head}, {split}")
        plots.save(figure, workdir / "pictures" / f"confusion_{head}.png")


def _finite(scalars: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scalars.items()}


def _of_classes(result: Result, head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class: its name, its videos, and the share of them that was recognised, or its average precision."""
    if head in result.average_precision:
        found = result.predictions
        videos = found.heads[head].truth[found.counted].sum(axis=0)
        what, values = "average_precision", result.average_precision[head]
    else:
        videos = result.confusion[head].sum(axis=1)
        what, values = "accuracy", np.diag(result.confusion[head]) / np.where(videos > 0, videos, np.nan)
    return [
        {"name": name, "videos": int(number)} | _finite({what: float(value)})
        for name, number, value in zip(names, videos, values, strict=True)
    ]
