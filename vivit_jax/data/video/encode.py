"""A worker's part of a build: one video file -> the JPEG frames of its segments, decoded once.

Kept apart from `builder` because the workers import it, and should not wait for TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vivit_jax.data.video import decode
from vivit_jax.utils import storage

# Pixels a side that a JPEG can have (libjpeg's JPEG_MAX_DIMENSION).
_JPEG_SIDE = 65_500


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """What is stored of a video.

    Attributes:
      short_side: pixels that the shorter side has at most; None for the source's size.
      quality: of the JPEGs, 1 to 95.
      fps: frames per second that are kept at most; None for all of the source's.

    Raises:
      ValueError: a value outside these limits.
    """

    short_side: int | None
    quality: int = 85
    fps: float | None = None

    def __post_init__(self):
        if not 1 <= self.quality <= 95:
            raise ValueError(f"JPEG quality is {self.quality}; it must be 1 to 95")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side is {self.short_side}; it must be at least 1 pixel")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps is {self.fps:g}; it must be above 0 and at most 1000 frames a second")


@dataclasses.dataclass(frozen=True)
class FileTask:
    """One file, the segments wanted of it, (start, end) in seconds or (None, None) for all of it, and their form."""

    path: storage.AnyPath
    segments: Sequence[tuple[float | None, float | None]]
    form: EncodeOptions


@dataclasses.dataclass(frozen=True)
class Segment:
    """The stored form of a segment.

    Attributes:
      frames: JPEG bytes of each frame.
      fps: frames per second of `frames`: the source's (see `decode.frame_rate`), or the form's where that is lower.
      height, width: stored size in pixels.
      varies: whether the source's frame rate varies within the segment.
      repaired: frames of the segment whose time stamps were missing or did not rise.
    """

    frames: list[bytes]
    fps: float
    height: int
    width: int
    varies: bool = False
    repaired: int = 0


def encode_file(task: FileTask) -> list[Segment | str]:
    """For each segment its frames, or the reason why there are none: nothing that a file may hold raises."""
    jpeg = _Jpeg(task.path, task.form.quality)
    takers = [
        _Taker(start or 0.0, math.inf if end is None else end, task.form.fps, jpeg) for start, end in task.segments
    ]
    last_end = max(taker.end for taker in takers)
    waiting, active = sorted(takers, key=lambda taker: -taker.start), []
    stated, reached, problem = 0.0, -1.0, None
    try:
        end = None if last_end == math.inf else last_end
        for frame in decode.iterate_frames(task.path, None, end, task.form.short_side):
            stated, reached = frame.fps, frame.time
            while waiting and waiting[-1].start <= frame.time + decode.TIME_TOLERANCE:
                active.append(waiting.pop())
            active = [taker for taker in active if taker.offer(frame)]
        for taker in active:
            taker.finish()
    except decode.VideoError as error:
        problem = str(error)
    results: list[Segment | str] = []
    for taker in takers:
        if problem and taker.end > reached:
            results.append(problem)
        elif not taker.chosen:
            results.append(
                f"{task.path}: no frames between {taker.start:g} s and {taker.end:g} s (it ends at {reached:.2f} s)"
            )
        else:
            fps, varies = decode.frame_rate(taker.times, stated)
            fps = fps if task.form.fps is None else min(fps, task.form.fps)
            results.append(Segment(taker.chosen, fps, *jpeg.size, varies, taker.repaired))
    return results


class _Jpeg:
    """Frames -> JPEG bytes; the last is kept, since segments may share frames. `size` is (height, width)."""

    def __init__(self, path: storage.AnyPath, quality: int):
        self._path, self._quality = path, quality
        self._last: tuple[decode.Frame | None, bytes] = (None, b"")
        self.size = (0, 0)

    def __call__(self, frame: decode.Frame) -> bytes:
        if self._last[0] is not frame:
            self.size = frame.image.shape[:2]
            if max(self.size) > _JPEG_SIDE:
                raise decode.VideoError(
                    f"{self._path}: {self.size[1]} x {self.size[0]} pixels; a JPEG has at most {_JPEG_SIDE} a side"
                )
            self._last = (frame, _jpeg(frame.image, self._quality))
        return self._last[1]


class _Taker:
    """Takes the frames of one segment: all, or those a lower frame rate needs.

    At `fps` frames a second, the k-th point in time is k / fps after the segment's first frame, and the frame taken is
    the last one at or before it; a frame that would come twice comes once: the times of what is taken rise strictly.
    """

    def __init__(self, start: float, end: float, fps: float | None, jpeg: _Jpeg):
        self.start, self.end, self._fps, self._jpeg = start, end, fps, jpeg
        self._held: decode.Frame | None = None
        self._points = 0  # points in time that have their frame
        self.times: list[float] = []
        self.chosen: list[bytes] = []
        self.repaired = 0

    def offer(self, frame: decode.Frame) -> bool:
        """Takes the next frame, which is not before the start, if it needs it; False when the segment is over."""
        if frame.time + decode.TIME_TOLERANCE >= self.end:
            self.finish()
            return False
        self.times.append(frame.time)
        self.repaired += frame.repaired
        if self._fps is None:
            self.chosen.append(self._jpeg(frame))
        else:
            self._settle(frame.time - decode.TIME_TOLERANCE)
            self._held = frame
        return True

    def finish(self) -> None:
        """The segment has no further frames; its last one lasts as long as the one before."""
        if self._held:
            lasts = self.times[-1] - self.times[-2] if len(self.times) > 1 else 1.0 / self._held.fps
            self._settle(min(self._held.time + lasts, self.end) - decode.TIME_TOLERANCE)
            self._held = None

    def _settle(self, until: float) -> None:
        """Takes the frame that is held, where a point in time before `until` falls to it."""
        points = math.ceil((until - self.times[0]) * self._fps) if self._held else 0
        if points > self._points:
            self.chosen.append(self._jpeg(self._held))
            self._points = points


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    # Shares the pixels; `Image.fromarray` copies them.
    size = (image.shape[1], image.shape[0])
    Image.frombuffer("RGB", size, image, "raw", "RGB", 0, 1).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
