"""Evaluated videos as small animations, cut as the model sees them."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_eval_set
from vivit_jax.data.selection import subset
from vivit_jax.report.figures import data_uri

MAX_SIDE = 192  # pixels; keeps a report with 12 clips below a few MB
DEFAULT_FRAME_MS = 120  # where the frame rate of the source is unknown


def animations(
    config: Mapping[str, Any], eval_split: str, class_names: Mapping[str, Sequence[str]], videos: Mapping[int, str]
) -> dict[int, str | None]:
    """Reads the first test clip of some videos from the records; OSError or ValueError if these are not available.

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
