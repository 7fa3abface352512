"""Videos of a run's evaluation split as small animations, cut as the model sees them."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, features

from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_eval_set
from vivit_jax.data.selection import subset

LONGEST_SIDE = 192  # pixels; with 12 clips the file stays below a few MB
FRAME_MS = 120  # of a frame where the records do not tell the source's frame rate


class NoClipsError(Exception):
    """The frames cannot be had; the message says why."""


def animations(
    config: Mapping[str, Any], eval_split: str, class_names: Mapping[str, Sequence[str]], videos: Mapping[int, str]
) -> dict[int, str | None]:
    """The first test clip of some videos, from the records.

    Args:
      config: of the run.
      eval_split: name of the split that was evaluated.
      class_names: of its heads, by class id; a mixture may have added some to the split's.
      videos: {place in the split: name} of those wanted.

    Returns:
      {place: data URI of an animated WebP (or GIF), None where the record is broken}.

    Raises:
      NoClipsError: the records are gone or are others, or the config is none of this version.
    """
    try:
        experiment = Experiment.from_config(config)
        data = experiment.data
        split = open_eval_set(dataclasses.replace(data, eval_split=eval_split), class_names, prepare=False)
        for place, name in videos.items():
            if place >= split.num_videos or split.video_id[place] != name:
                raise ValueError(
                    f"{split.folder}: video {place} of {eval_split} is not {name}; the records have changed"
                )
        heads = {head: len(names) for head, names in class_names.items()}
        spec = experiment.clip_spec(experiment.model_config(heads))
    except (OSError, ValueError) as error:
        raise NoClipsError(str(error)) from error
    chosen = np.array(sorted(videos))
    options = pipeline.PipelineOptions(threads=1, prefetch=1)
    made: dict[int, str | None] = {}
    with pipeline.eval_batches(subset.take(split, chosen), spec, batch_size=1, options=options) as batches:
        for batch in batches:
            place = int(chosen[int(batch["index"][0])])
            milliseconds = _frame_ms(split.fps[place], spec)
            made[place] = animate(batch["video"][0, 0], milliseconds) if batch["mask"][0] else None
    return made


def animate(clip: np.ndarray, frame_ms: int) -> str:
    """A clip as an animation without end: data URI of a WebP, or of a GIF where Pillow has no WebP.

    Args:
      clip: uint8 [T, H, W, 3].
      frame_ms: time of a frame; the last one stays a little longer, so that the end is seen.
    """
    shrink = min(1.0, LONGEST_SIDE / max(clip.shape[1:3]))
    size = (max(1, round(clip.shape[2] * shrink)), max(1, round(clip.shape[1] * shrink)))
    frames = [Image.fromarray(frame) for frame in clip]
    frames = [frame if frame.size == size else frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    times = [frame_ms] * (len(frames) - 1) + [frame_ms + 400]
    kind = "webp" if features.check("webp") else "gif"
    options: dict[str, Any] = {"quality": 75, "method": 4} if kind == "webp" else {"optimize": True}
    file = io.BytesIO()
    frames[0].save(file, kind.upper(), save_all=True, append_images=frames[1:], duration=times, loop=0, **options)
    return data_uri(file.getvalue(), f"image/{kind}")


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as a URI that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def picture(path: epath.PathLike) -> str | None:
    """A PNG file as a data URI; None where there is no such file."""
    path = epath.Path(path)
    return data_uri(path.read_bytes(), "image/png") if path.exists() else None


def _frame_ms(fps: float, spec: Any) -> int:
    if spec.sampling == "segments" or not np.isfinite(fps) or fps <= 0:
        return FRAME_MS
    return int(np.clip(1000 * spec.stride / fps, 40, 500))
