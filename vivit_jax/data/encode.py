"""A worker's part of a build: one video file -> the JPEG frames of its segments, decoded once.

Kept apart from `builder` because the workers import it, and should not wait for TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vivit_jax.data import decode


@dataclasses.dataclass(frozen=True)
class FileTask:
    """One file and the segments wanted of it, (start, end) in seconds or (None, None) for all of it."""

    path: Path
    segments: Sequence[tuple[float | None, float | None]]
    short_side: int | None
    quality: int


@dataclasses.dataclass(frozen=True)
class Segment:
    """The stored form of a segment: JPEG bytes of each frame, frames a second of the source, stored size in pixels."""

    frames: list[bytes]
    fps: float
    height: int
    width: int


def encode_file(task: FileTask) -> list[Segment | str]:
    """For each segment its frames, or the reason why there are none: nothing that a file may hold raises."""
    frames: list[list[bytes]] = [[] for _ in task.segments]
    bounds = [(start or 0.0, float("inf") if end is None else end) for start, end in task.segments]
    last_end = max(end for _, end in bounds)
    fps, size, reached, problem = 0.0, (0, 0), -1.0, None
    try:
        whole = last_end == float("inf")
        for frame in decode.iterate_frames(task.path, None, None if whole else last_end, task.short_side):
            fps, size, reached = frame.fps, frame.image.shape[:2], frame.time
            wanted = [
                i
                for i, (start, end) in enumerate(bounds)
                if start - decode.TIME_TOLERANCE <= frame.time < end - decode.TIME_TOLERANCE
            ]
            if wanted:
                jpeg = _jpeg(frame.image, task.quality)
                for i in wanted:
                    frames[i].append(jpeg)
    except decode.VideoError as error:
        problem = str(error)
    results: list[Segment | str] = []
    for (start, end), found in zip(bounds, frames, strict=True):
        if problem and end > reached:
            results.append(problem)
        elif not found:
            results.append(f"{task.path}: no frames between {start:g} s and {end:g} s (it ends at {reached:.2f} s)")
        else:
            results.append(Segment(found, fps, *size))
    return results


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    # Shares the pixels; `Image.fromarray` copies them.
    size = (image.shape[1], image.shape[0])
    Image.frombuffer("RGB", size, image, "raw", "RGB", 0, 1).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
