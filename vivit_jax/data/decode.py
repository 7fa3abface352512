"""A video file -> its RGB frames in order (PyAV), rotated upright, cut and resized as asked. Nothing else.

Frames are decoded from the first on, never by seeking (container formats land seeks in the wrong place), with one
thread (callers run one process a core).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# Container time stamps are rounded to their time base; cuts are taken to within this many seconds.
TIME_TOLERANCE = 1e-3
# Newer PyAV converts with threads of its own unless told not to; for frames this small they only cost.
_CONVERSION = {"interpolation": Interpolation.BICUBIC}
if "threads=" in (VideoReformatter.reformat.__doc__ or ""):
    _CONVERSION["threads"] = 1


# What PyAV raises on damaged files: FFmpeg's own errors, and its own on values that make no sense.
_DAMAGE = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError)


class VideoError(ValueError):
    """A file that yields no usable video; the message names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One decoded frame: `image` uint8 [H, W, 3] RGB, `time` seconds from the video's start, `fps` of the stream."""

    image: np.ndarray
    time: float
    fps: float


@dataclasses.dataclass(frozen=True)
class Video:
    """A decoded video.

    Attributes:
      frames: uint8 [T, H, W, 3], RGB, T >= 1.
      times: float64 [T], seconds from the start of the video, strictly rising.
      fps: frames per second that the stream states (measured from `times` where it states none).
    """

    frames: np.ndarray
    times: np.ndarray
    fps: float


def output_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) with the short side at most `short_side`, the aspect ratio kept; never enlarged."""
    if short_side is None or min(height, width) <= short_side:
        return height, width
    if height <= width:
        return short_side, max(short_side, round(width * short_side / height))
    return max(short_side, round(height * short_side / width)), short_side


def iterate_frames(
    path: str | Path, start: float | None = None, end: float | None = None, short_side: int | None = None
) -> Iterator[Frame]:
    """Frames of a file's first video stream in order of display.

    Args:
      path: any container and codec that FFmpeg reads.
      start, end: seconds from the video's start; frames with start <= time < end. None: from the first, to the last.
      short_side: resize so that the shorter side has this many pixels (bicubic; smaller videos stay as they are).

    Yields:
      `Frame`s; all have the size of the first. `time` is strictly rising: where the container gives no time stamp
      (AVI with B-frames), the one before plus 1 / fps.

    Raises:
      VideoError: no such file, not a video, no video stream, broken data, fewer frames than the header announces.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    try:
        container = av.open(str(path))
    except _DAMAGE as error:
        raise VideoError(f"{path}: not a video that can be read, or cut short ({_reason(error)})") from error
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: no video stream in it")
        stream = container.streams.video[0]
        stream.thread_count = 1
        yield from _decode(path, container, stream, start, end, short_side)


def read_video(
    path: str | Path, start: float | None = None, end: float | None = None, short_side: int | None = None
) -> Video:
    """A whole video, or its frames from `start` to `end` seconds, in memory; arguments as `iterate_frames`.

    Raises:
      VideoError: as `iterate_frames`, and when there is no frame between start and end.
    """
    frames = list(iterate_frames(path, start, end, short_side))
    if not frames:
        until = "the end" if end is None else f"{end:g} s"
        raise VideoError(f"{path}: no frames between {start or 0:g} s and {until}")
    times = np.array([frame.time for frame in frames])
    return Video(np.stack([frame.image for frame in frames]), times, frames[0].fps)


def _decode(path, container, stream, start, end, short_side) -> Iterator[Frame]:
    reformatter = VideoReformatter()
    fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    first, last, decoded, size = None, None, 0, None
    try:
        for frame in container.decode(stream):
            decoded += 1
            stamp = frame.time
            if first is None:
                first = stamp or 0.0
            time = None if stamp is None else stamp - first
            if time is None or (last is not None and time <= last):
                time = 0.0 if last is None else last + 1.0 / fps
            last = time
            if start is not None and time < start - TIME_TOLERANCE:
                continue
            if end is not None and time >= end - TIME_TOLERANCE:
                return
            turns = round((frame.rotation or 0) / 90) % 4
            if size is None:
                size = output_size(frame.height, frame.width, short_side)
            rgb = reformatter.reformat(frame, width=size[1], height=size[0], format="rgb24", **_CONVERSION)
            image = rgb.to_ndarray()
            # FFmpeg pads the rows of most widths; the array is a view of them until it is copied.
            yield Frame(np.ascontiguousarray(np.rot90(image, turns)), time, fps)
    except _DAMAGE as error:
        raise VideoError(f"{path}: broken after {decoded} frames ({_reason(error)})") from error
    if decoded == 0:
        raise VideoError(f"{path}: no frames could be decoded from its video stream")
    expected = _announced_frames(container, stream, fps)
    if decoded < 0.9 * expected - 1:
        raise VideoError(f"{path}: cut short: {decoded} frames of about {expected:.0f} that its header announces")


def _announced_frames(container, stream, fps: float) -> float:
    """Frames that the header announces; 0 where it says nothing.

    In MP4 and MOV an edit list may leave out frames, which shortens the duration and not the count; elsewhere the
    duration may be a guess from the size of the file, and the count is the better witness.
    """
    by_duration = (container.duration or 0) / av.time_base * fps
    if stream.frames and "mp4" in container.format.name and by_duration:
        return min(float(stream.frames), by_duration)
    return float(stream.frames) or by_duration


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
