"""Line plots, confusion matrices and animations of evaluated videos in the report, as data URIs."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_eval_set
from vivit_jax.data.selection import subset
from vivit_jax.utils import plots

Points = Sequence[tuple[float, float]]
MAX_POINTS = 400
MAX_SIDE = 192  # pixels; keeps a report with 12 clips below a few MB
DEFAULT_FRAME_MS = 120  # where the frame rate of the source is unknown


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def thin(points: Points) -> Points:
    """Averages more than `MAX_POINTS` points over as many equal stretches, to keep the report of a long run small."""
    if len(points) <= MAX_POINTS:
        return points
    stretches = np.array_split(np.asarray(points, float), MAX_POINTS)
    return [(float(stretch[-1, 0]), float(stretch[:, 1].mean())) for stretch in stretches]


def lines(series: Mapping[str, Points], xlabel: str, *, percent: bool = False, logarithmic: bool = False) -> str:
    """Draws {name: [(x, y), ...]} as an SVG; `percent`: y in [0, 1]; `logarithmic` applies where all y are positive."""
    style, file = Path(__file__).with_suffix(".mplstyle"), io.BytesIO()
    size = (5.2, 2.8 + 0.17 * (len(series) // 2))
    with plots.drawing(figsize=size, layout="constrained") as (figure, _), matplotlib.style.context(style):
        axes = figure.add_subplot(xlabel=xlabel)
        for name, points in series.items():
            options = {"label": plots.readable(name), "marker": "o" if len(points) <= 40 else ""}
            axes.plot(*zip(*thin(points), strict=True), linewidth=1.5, markersize=3, **options)
        if logarithmic and all(y > 0 for points in series.values() for _, y in points):
            axes.set_yscale("log")
            # The default labels are formulas.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False)
        figure.savefig(file, format="svg", transparent=True)
    return data_uri(file.getvalue(), "image/svg+xml")


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], head: str) -> str:
    """Draws a confusion matrix, int [C, C] with the true classes in rows, as a PNG."""
    figure, file = plots.confusion_matrix(matrix, names, head), io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return data_uri(file.getvalue(), "image/png")


def animations(
    config: Mapping[str, Any], eval_split: str, class_names: Mapping[str, Sequence[str]], videos: Mapping[int, str]
) -> dict[int, str | None]:
    """Reads the first test clip of some videos, as the model sees it; OSError or ValueError without their records.

    `class_names` is {head: names by class id}, to which a mixture may have added some; `videos` {index in the split:
    expected name}. Returns {index: data URI of an animated WebP, None where the record is damaged}.
    """
    experiment = Experiment.from_config(config)
    data = dataclasses.replace(experiment.data, eval_split=eval_split)
    split, _ = open_eval_set(data, class_names, prepare=False)
    for index, name in videos.items():
        if index >= split.num_videos or split.video_id[index] != name:
            raise ValueError(f"{split.folder}: video {index} of {eval_split} is not {name}; the records have changed")
    spec = experiment.clip_spec(experiment.model_config({head: len(names) for head, names in class_names.items()}))
    indices, options = np.array(sorted(videos)), pipeline.PipelineOptions(threads=1, prefetch=1)
    result: dict[int, str | None] = {}
    with pipeline.eval_batches(subset.take(split, indices), spec, batch_size=1, options=options) as batches:
        for batch in batches:
            index, frame_ms = int(indices[batch["index"][0]]), DEFAULT_FRAME_MS
            fps = split.fps[index]
            if spec.sampling != "segments" and np.isfinite(fps) and fps > 0:
                frame_ms = int(np.clip(1000 * spec.stride / fps, 40, 500))
            result[index] = animate(batch["video"][0, 0], frame_ms) if batch["mask"][0] else None
    return result


def animate(clip: np.ndarray, frame_ms: int) -> str:
    """Encodes a clip, uint8 [T, H, W, 3], as an endless WebP; returns a data URI."""
    frames = [Image.fromarray(frame) for frame in clip]
    for frame in frames:
        frame.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    durations = [frame_ms] * (len(frames) - 1) + [frame_ms + 400]  # a pause before the clip starts over
    file, options = io.BytesIO(), {"duration": durations, "loop": 0, "quality": 75, "method": 4}
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], **options)
    return data_uri(file.getvalue(), "image/webp")
