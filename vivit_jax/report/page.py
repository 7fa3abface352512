"""Contents of the report page; `templates/report.html.j2` holds its layout."""

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from vivit_jax.config.fields import flat
from vivit_jax.evaluation import metrics
from vivit_jax.evaluation.predictions import LABEL_SEPARATOR
from vivit_jax.report import figures
from vivit_jax.report.load import Run, Series
from vivit_jax.utils import plots

NUM_CLIPS = 6  # best, and as many worst
NUM_CONFUSIONS = 10
MAX_TABLE_CLASSES = 25  # the confusion matrix of more classes is an image instead of a table
# Series that measure speed, not quality.
_SPEED = re.compile(r"per_sec|utilisation|wait|seconds$")
# (title, pattern of the series, options of `figures.lines`)
_PANELS = (
    ("loss", r"(^|/)loss(/|$)", {}),
    ("accuracy in training", r"^train/accuracy", {"percent": True}),
    ("accuracy in evaluation", r"^eval/.*(top1|mean_average_precision)$", {"percent": True}),
    ("learning rate", r"learning_rate", {}),
    ("norm of gradients", r"gradient_norm", {"logarithmic": True}),
    ("norm of updates", r"update_norm", {"logarithmic": True}),
    ("norm of parameters", r"parameter_norm", {}),
)


def render(run: Run) -> str:
    """Returns the page as HTML. It refers to nothing outside itself; names from the run are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vivit_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": _metric, "percent": "{:.1%}".format, "thousands": "{:,}".format, "repr": repr}
    environment.filters |= {
        "date": lambda seconds: f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "duration": lambda seconds: str(datetime.timedelta(seconds=round(seconds))),
    }
    picture = run.workdir / plots.RECONSTRUCTIONS
    return environment.get_template("report.html.j2").render(
        run=run,
        scalars=_scalars(run),
        curves=_curves(run.series),
        reconstructions=figures.data_uri(picture.read_bytes(), "image/png") if picture.exists() else "",
        heads=[_head(run, head, rows) for head, rows in run.evaluation.get("classes", {}).items()],
        clips=_clips(run),
        label_separator=LABEL_SEPARATOR,
        views=_views(run.evaluation.get("by_temporal_views", [])),
        throughput=_throughput(run.series),
        parameters=run.parameters(),
        changed=run.changed_fields(),
        config=flat(run.config),
        written=datetime.datetime.now(datetime.UTC).timestamp(),
    )


def _scalars(run: Run) -> list[dict[str, Any]]:
    """Returns the last and the best value of each evaluation metric."""
    last = run.metrics
    curves = {name[5:]: p for name, p in run.series.items() if name.startswith("eval/") and not _SPEED.search(name)}
    rows = []
    for name in [*last, *(name for name in curves if name not in last)]:
        points = curves.get(name, [])
        select = min if name.endswith("loss") else max
        step, best = select(points, key=lambda point: point[1]) if points else (None, last.get(name))
        rows.append({"name": name, "last": last[name] if name in last else points[-1][1], "best": best, "step": step})
    return rows


def _curves(series: Series) -> list[tuple[str, str]]:
    """Returns (title, image) of each panel that has a series."""
    panels = []
    for title, pattern, options in _PANELS:
        if matching := {name: points for name, points in sorted(series.items()) if re.search(pattern, name)}:
            panels.append((title, figures.lines(matching, "step", **options)))
    return panels


def _throughput(series: Series) -> list[tuple[str, str]]:
    """Returns (title, image) of each series that measures speed."""
    speeds = {name: points for name, points in sorted(series.items()) if _SPEED.search(name)}
    means = {name: np.mean([value for _, value in points]) for name, points in speeds.items()}
    return [(f"{name}, mean {means[name]:.4g}", figures.lines({name: speeds[name]}, "step")) for name in speeds]


def _head(run: Run, head: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the classes of a head by accuracy, and its confusions; `rows` are those of `evaluation.json`."""
    kind = "accuracy" if "accuracy" in rows[0] else "average_precision"
    ranked = sorted((row | {"share": row[kind]} for row in rows if row[kind] is not None), key=lambda r: -r["share"])
    result: dict[str, Any] = {"name": head, "kind": kind.replace("_", " "), "ranked": ranked, "confused": []}
    result |= {"num_absent": len(rows) - len(ranked), "matrix": None, "image": None}
    matrix, names = run.confusion(head), run.class_names[head]
    if matrix is None:
        return result
    if len(names) <= MAX_TABLE_CLASSES:
        shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).round(3)
        result["matrix"] = list(zip(names, matrix.tolist(), shares.tolist(), strict=True))
    else:
        result["image"] = figures.confusion_matrix(matrix, names, head)
    errors = matrix - np.diag(np.diag(matrix))
    for cell in np.argsort(-errors, axis=None, kind="stable")[:NUM_CONFUSIONS].tolist():
        truth, predicted = divmod(cell, len(names))
        if errors[truth, predicted]:
            counts = int(errors[truth, predicted]), int(matrix[truth].sum())
            result["confused"].append((names[truth], names[predicted], *counts))
    return result


def _clips(run: Run) -> dict[str, Any] | None:
    """Returns the videos with the lowest and the highest loss, with animations where the records are available."""
    ranked = sorted((video for video in run.videos if math.isfinite(video.loss)), key=lambda video: video.loss)
    if not ranked:
        return None
    number = min(NUM_CLIPS, (len(ranked) + 1) // 2)
    best, worst = ranked[:number], ranked[: -number - 1 : -1]
    images, error = {}, ""
    try:
        # The last evaluation may have used other data than the run: `--mode=eval` with another config.
        config = {**run.config, "data": run.evaluation.get("data") or run.config.get("data", {})}
        names = {video.index: video.name for video in best + worst}
        images = figures.animations(config, run.evaluation["split"], run.class_names, names)
    except (OSError, ValueError) as unavailable:
        error = str(unavailable)
    return {"error": error, "images": images, "groups": {"Best": best, "Worst": worst}}


def _views(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws accuracy against the number of temporal views; `rows` are those of `evaluation.json`, "" without them."""
    shown = ("top1", metrics.MEAN_AVERAGE_PRECISION)
    names = [name for name in rows[-1]["metrics"] if name.endswith(shown)] if rows else []
    curves = {name: [(row["temporal_views"], row["metrics"][name]) for row in rows] for name in names}
    series = {name: points for name, points in curves.items() if all(y is not None for _, y in points)}
    return figures.lines(series, "temporal views", percent=True) if series else ""


def _metric(value: float | None, name: str) -> str:
    """Formats a metric: shares in per cent, others with four digits."""
    if value is None:
        return "–"
    share = name.endswith(("top1", "top5", "accuracy", metrics.MEAN_AVERAGE_PRECISION))
    return f"{value:.1%}" if share else f"{value:.4g}"
