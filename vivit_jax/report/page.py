"""A run as one HTML page: what to show, in the order in which one asks; the template says how it looks."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from vivit_jax.config.fields import flat
from vivit_jax.evaluation import metrics
from vivit_jax.evaluation.predictions import SEVERAL
from vivit_jax.report import animations, figures
from vivit_jax.report.load import Run, Series, Video

SHOWN_CLIPS = 6  # best, and as many worst
SHOWN_CLASSES = 8  # best, and as many worst, where a head has more than twice as many
LARGEST_TABLE = 25  # classes of a confusion matrix that is a table; larger ones are a picture
SHOWN_CONFUSIONS = 10


def render(run: Run) -> str:
    """The whole page as HTML. Nothing in it is fetched from anywhere; names from the run are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vivit_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": _metric, "value": _value, "percent": lambda x: f"{x:.1%}"}
    classes = run.evaluation.get("classes", {})
    return environment.get_template("report.html.j2").render(
        run=run,
        title=run.workdir.name,
        subtitle=_subtitle(run),
        tiles=_tiles(run),
        scalars=_scalars(run),
        curves=_curves(run.series),
        heads=[_head(run, head, rows) for head, rows in classes.items()],
        clips=_clips(run),
        views=_views(run.evaluation.get("by_temporal_views", [])),
        throughput=_throughput(run.series),
        parameters=_parameters(run.parameters()),
        changed=run.changed(),
        config=flat(run.config),
        written=_moment(datetime.datetime.now(datetime.UTC).timestamp()),
    )


def _subtitle(run: Run) -> str:
    model, data = run.config.get("model", {}), run.config.get("data", {})
    parts = [model.get("name"), (model.get("attention") or "").replace("_", " "), data.get("name")]
    return " · ".join(part for part in parts if part)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, more about it): the run at a glance."""
    total, done = run.total_steps, run.last_step
    state = "finished" if total and done >= total else f"of {total:,}" if total else ""
    tiles = [("steps", f"{done:,}", state)]
    if run.times:
        first, last = run.times
        tiles.append(("time", _duration(last - first), f"{_moment(first)} to {_moment(last)}"))
    wanted = run.config.get("checkpoint", {}).get("best_metric")
    for row in _scalars(run):
        if row["name"] == wanted:
            at = f" (best {_metric(row['best'], wanted)} at step {row['best_step']:,})" if row["best_step"] else ""
            tiles.append((wanted, _metric(row["last"], wanted), f"checkpoints are chosen by it{at}"))
    if run.evaluation:
        temporal, spatial = run.evaluation["views"]
        whole = run.evaluation.get("videos_of_split", run.evaluation["videos"])
        more = [f"of {whole:,} in {run.evaluation['split']}, {temporal} × {spatial} views"]
        if run.evaluation["unreadable"]:
            more.append(f"{run.evaluation['unreadable']:,} could not be read")
        if run.evaluation.get("repeated_views"):
            more.append(f"{run.evaluation['repeated_views']:,} too short or small for as many different views")
        tiles.append(("videos evaluated", f"{run.evaluation['videos']:,}", "; ".join(more)))
    if run.series.get("train/skipped"):
        number = round(sum(value for _, value in run.series["train/skipped"]))
        tiles.append(("steps skipped", f"{number:,}", "loss or gradients not finite, or a spike"))
    return tiles


def _scalars(run: Run) -> list[dict[str, Any]]:
    """Each evaluation metric: its value in the last evaluation, the best one and when."""
    final = run.evaluation.get("metrics", {})
    curves = {
        name.removeprefix("eval/"): points
        for name, points in run.series.items()
        if name.startswith("eval/") and not _OF_THE_MACHINE.search(name)
    }
    rows = []
    for name in [*final, *(n for n in curves if n not in final)]:
        points = curves.get(name, [])
        choose = min if name.endswith("loss") else max
        best = choose(points, key=lambda point: point[1]) if points else (None, final.get(name))
        last = final[name] if name in final else points[-1][1]
        rows.append({"name": name, "last": last, "best": best[1], "best_step": best[0]})
    return rows


# Series that tell how fast the run was, not how well.
_OF_THE_MACHINE = re.compile(r"per_sec|utilisation|wait|seconds$")
# Title, which series, in per cent, on a logarithmic scale.
_PANELS = (
    ("loss", r"(^|/)loss(/|$)", False, False),
    ("accuracy in training", r"^train/accuracy", True, False),
    ("accuracy in evaluation", r"^eval/.*(top1|mean_average_precision)$", True, False),
    ("learning rate", r"learning_rate", False, False),
    ("norm of gradients", r"gradient_norm", False, True),
    ("norm of updates", r"update_norm", False, True),
    ("norm of parameters", r"parameter_norm", False, False),
)


def _curves(series: Series) -> list[tuple[str, str]]:
    """(title, SVG) of each panel that has something to show."""
    panels = []
    for title, pattern, shares, logarithmic in _PANELS:
        wanted = {name: points for name, points in sorted(series.items()) if re.search(pattern, name)}
        if wanted:
            panels.append((title, figures.lines(wanted, "step", title, shares=shares, logarithmic=logarithmic)))
    return panels


def _throughput(series: Series) -> list[dict[str, Any]]:
    """The series that are not of losses but of the machine: with their mean and a drawing."""
    return [
        {
            "name": name,
            "mean": float(np.mean([value for _, value in points])),
            "svg": figures.lines({name: points}, "step", name),
        }
        for name, points in sorted(series.items())
        if _OF_THE_MACHINE.search(name)
    ]


def _head(run: Run, head: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A head's classes and confusions.

    Args:
      run: of which it is.
      head: its name.
      rows: of `evaluation.json`: name, videos, accuracy or average precision of each class.
    """
    kind = "accuracy" if "accuracy" in rows[0] else "average_precision"
    seen = [{"name": row["name"], "videos": row["videos"], "share": row[kind]} for row in rows if row[kind] is not None]
    ranked = sorted(seen, key=lambda row: -row["share"])
    found: dict[str, Any] = {
        "name": head,
        "kind": kind.replace("_", " "),
        "ranked": ranked,
        "without": len(rows) - len(seen),
        "best": ranked[:SHOWN_CLASSES],
        "worst": ranked[: -SHOWN_CLASSES - 1 : -1] if len(ranked) > 2 * SHOWN_CLASSES else [],
        "matrix": None,
        "picture": None,
        "confused": [],
    }
    matrix = run.confusion(head)
    if matrix is None:
        return found
    names = run.class_names[head]
    if len(names) <= LARGEST_TABLE:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        found["names"] = names
        found["matrix"] = [
            (name, list(zip(counts.tolist(), of_row.tolist(), names, strict=True)))
            for name, counts, of_row in zip(names, matrix, shares, strict=True)
        ]
    else:
        found["picture"] = figures.matrix_picture(matrix)
    wrong = matrix - np.diag(np.diag(matrix))
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS].tolist():
        truth, taken = divmod(cell, len(names))
        if wrong[truth, taken]:
            found["confused"].append((names[truth], names[taken], int(wrong[truth, taken]), int(matrix[truth].sum())))
    return found


def _clips(run: Run) -> dict[str, Any] | None:
    """The videos with the lowest and the highest loss; None where no video is known."""
    ranked = sorted((video for video in run.videos if math.isfinite(video.loss)), key=lambda video: video.loss)
    if not ranked:
        return None
    number = min(SHOWN_CLIPS, (len(ranked) + 1) // 2)
    groups = {"best": ranked[:number], "worst": ranked[: -number - 1 : -1]}
    names = {video.index: video.name for group in groups.values() for video in group}
    moving, why = {}, ""
    try:
        # What was evaluated last may be other data than those of the run: `--mode=eval` with another config.
        config = {**run.config, "data": run.evaluation.get("data") or run.config.get("data", {})}
        moving = animations.animations(config, run.evaluation["split"], run.class_names, names)
    except animations.NoClipsError as error:
        why = str(error)
    return {"why": why} | {
        kind: [_card(video, moving.get(video.index)) for video in group] for kind, group in groups.items()
    }


def _card(video: Video, picture: str | None) -> dict[str, Any]:
    heads = []
    for head, row in video.heads.items():
        truths = {row["truth"], *row["truth"].split(SEVERAL)}
        heads.append(
            {
                "name": head,
                "truth": row["truth"],
                "right": row["rank"] == 1,
                "rank": row["rank"],
                "probability": row["truth_probability"],
                "ranked": [(name, probability, name in truths) for name, probability in row["ranked"][:3]],
            }
        )
    return {"name": video.name, "index": video.index, "loss": video.loss, "picture": picture, "heads": heads}


def _views(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    names = [name for name in rows[-1]["metrics"] if name.endswith(("top1", metrics.MEAN_AVERAGE_PRECISION))]
    series = {
        name: [(row["temporal_views"], row["metrics"][name]) for row in rows if row["metrics"][name] is not None]
        for name in names
    }
    series = {name: points for name, points in series.items() if points}
    drawn = figures.lines(series, "temporal views", "accuracy", shares=True) if series else ""
    shown = [name for name in rows[-1]["metrics"] if not name.endswith("loss")]
    return {"names": shown, "rows": rows, "svg": drawn}


def _parameters(counts: Mapping[str, int]) -> dict[str, Any] | None:
    total = sum(counts.values())
    if not total:
        return None
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return {"total": total, "parts": [(part, number, number / total) for part, number in ranked]}


def _metric(value: float | None, name: str) -> str:
    """A metric as text: shares in per cent, the rest with four digits."""
    if value is None:
        return "–"
    share = name.endswith(("top1", "top5", "accuracy", metrics.MEAN_AVERAGE_PRECISION))
    return f"{value:.1%}" if share else f"{value:.4g}"


def _value(value: Any) -> str:
    """A config's value as one writes it."""
    return repr(value) if isinstance(value, str) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
