"""Results of an evaluation and their files: `evaluation.json`, `predictions.csv`, `pictures/confusion_HEAD.png`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vivit_jax.evaluation import metrics
from vivit_jax.evaluation import predictions as per_video
from vivit_jax.utils import plots, storage
from vivit_jax.utils.trees import finite_or_none

RESULT_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation, in which each video is counted once.

    `scalars` are `top1`, `top5`, `loss` and `mean_class_accuracy`, as `HEAD/...` where there are several heads, with
    `action/...`; `mean_average_precision` and `loss` of a multi-label head.
    """

    scalars: dict[str, float]
    confusion: dict[str, np.ndarray]  # {head: int [C, C]}, true classes in rows
    counted: int  # videos in the scalars
    unreadable: int  # videos that could not be decoded
    views: tuple[int, int]  # temporal, spatial
    repeated_views: int = 0  # videos too short or too small for as many different views
    split_size: int = 0  # videos in the split, of which some or all were evaluated
    dtype: str = "float32"  # of the compute
    predictions: per_video.Predictions | None = None
    # {some of the temporal views (`select_views`): `scalars` with these and all spatial views of each, without
    # `mean_class_accuracy`}, by rising number; empty with a single one
    by_views: Mapping[tuple[int, ...], dict[str, float]] = dataclasses.field(default_factory=dict)
    # Of masked pretraining, uint8 [clips, 3, n_t, H, W, C]: original, masked, reconstructed
    reconstructions: np.ndarray | None = None
    # {multi-label head: float [C]}; NaN for a class without a video
    average_precision: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def problem(self, limit: float) -> str | None:
        """Returns a message where more than this share of the videos is unreadable."""
        total, allowed = self.counted + self.unreadable, f"more than data.max_unreadable={limit:g} of them"
        lost = f"{self.unreadable} of {total} videos could not be read and are not in the metrics, {allowed}"
        advice = "`python -m vivit_jax.data.verify DIR` lists the broken records"
        return f"{lost}; {advice}" if self.unreadable > limit * total else None

    def summary(self) -> str:
        """Returns one line with the accuracies, videos and views."""
        names = ("top1", "top5", metrics.MEAN_AVERAGE_PRECISION)
        shares = ", ".join(f"{name} {value:.1%}" for name, value in self.scalars.items() if name.endswith(names))
        shares = shares or f"masked loss {self.scalars['loss']:.4f}"
        unreadable = f", {self.unreadable} unreadable" if self.unreadable else ""
        repeated = f", of which {self.repeated_views} videos have fewer" if self.repeated_views else ""
        total = f" of {self.split_size}" if self.counted + self.unreadable < self.split_size else ""
        views = f"{self.views[0]} x {self.views[1]} views{repeated}"
        return f"{shares} ({self.counted} videos{total}, each counted once{unreadable}; {views})"


def write_result(
    workdir: epath.PathLike,
    result: Result,
    checkpoint: epath.PathLike,
    split: str,
    class_names: Mapping[str, Sequence[str]],
    data: Mapping[str, Any] | None = None,
    weights: str = "params",
) -> None:
    """Writes the files of the evaluation of a checkpoint on a split, from process 0; non-finite values as null.

    With `data`, a section of the config, the report finds the videos; None: that of the workdir's config. `weights`:
    the parameters that were evaluated, 'params' or 'ema'.
    """
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    content = {
        "checkpoint": str(checkpoint),
        "weights": weights,
        "split": split,
        "views": result.views,
        "videos": result.counted,
        "videos_of_split": result.split_size or result.counted + result.unreadable,
        "unreadable": result.unreadable,
        "repeated_views": result.repeated_views,
        "dtype": result.dtype,
        "metrics": result.scalars,
        "by_temporal_views": [
            {"temporal_views": len(views), "which": views, "metrics": scalars}
            for views, scalars in result.by_views.items()
        ],
        "data": data,
        "classes": {head: _class_rows(result, head, names) for head, names in class_names.items()},
    }
    storage.write(workdir / RESULT_FILE, json.dumps(finite_or_none(content), indent=1))
    if result.predictions is not None:
        per_video.write(workdir / per_video.FILE, result.predictions, class_names)
    if result.reconstructions is not None:
        with plots.optional("the reconstructions"):
            plots.save(plots.reconstructions(result.reconstructions, split), workdir / plots.RECONSTRUCTIONS)
    for head, matrix in result.confusion.items():
        with plots.optional(f"the confusion matrix of {head}"):
            figure = plots.confusion_matrix(matrix, class_names[head], f"{head}, {split}")
            plots.save(figure, workdir / "pictures" / plots.file_name(f"confusion_{head}", ".png"))


def _class_rows(result: Result, head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns each class with its number of videos, and its accuracy or average precision."""
    if head in result.average_precision:
        table = result.predictions
        videos = table.heads[head].truth[table.counted].sum(axis=0)
        kind, values = "average_precision", result.average_precision[head]
    else:
        videos = result.confusion[head].sum(axis=1)
        kind, values = "accuracy", metrics.class_accuracy(result.confusion[head])
    rows = zip(names, videos, values, strict=True)
    return [{"name": name, "videos": int(number), kind: float(value)} for name, number, value in rows]
