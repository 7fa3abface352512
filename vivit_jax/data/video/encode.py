"""Encoding of one video file: the JPEG frames of its segments, decoded once.

Runs in worker processes, which must not wait for TensorFlow: this module does not import it.
"""

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vivit_jax.data.video import decode
from vivit_jax.utils import checks, storage

_JPEG_SIDE = 65_500  # maximum in pixels (libjpeg's JPEG_MAX_DIMENSION)
ANIMATIONS = (".mp4", ".gif", ".webp")  # suffixes that `write_video` knows
_HELD = 16 << 20  # bytes of JPEGs that a `JpegStore` with a file keeps in memory


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """How frames are stored."""

    short_side: int | None = None  # maximum, in pixels; None: that of the source
    quality: int = 85  # of the JPEGs, 1 to 95
    fps: float | None = None  # maximum, at most 1000, and the rate of a folder of frames; None: that of the source
    max_seconds: float = 21_600.0  # of a file, up to its last segment; a longer one is rejected
    max_gb: float = 32.0  # 2^30 bytes of JPEGs of a file

    def __post_init__(self):
        checks.within("", self, "[1, 95]", "quality")
        checks.at_least("", self, short_side=1)
        checks.within("", self, "(0, 1000]", "fps")
        checks.within("", self, "(0, inf)", "max_seconds", "max_gb")


@dataclasses.dataclass(frozen=True)
class FileTask:
    """One file and the segments to encode: (start, end) in seconds, or (None, None) for the whole file."""

    path: storage.AnyPath
    segments: Sequence[tuple[float | None, float | None]]
    options: EncodeOptions
    spool: Path | None = None  # file for JPEGs that do not fit into memory; the caller deletes it


class JpegStore:
    """JPEGs by number: the last ones, up to `_HELD` bytes, in memory, the others in the file `spool`; None: all."""

    def __init__(self, spool: Path | None):
        self.ends = [0]  # of each, in bytes
        self._spool, self._spooled, self._held = spool, 0, bytearray()

    def add(self, jpeg: bytes) -> int:
        """Returns its number."""
        self._held += jpeg
        self.ends.append(self.ends[-1] + len(jpeg))
        if self._spool and len(self._held) > _HELD:
            with open(self._spool, "ab" if self._spooled else "wb") as file:
                file.write(self._held)
            self._spooled, self._held = self.ends[-1], bytearray()
        return len(self.ends) - 2

    def __getitem__(self, number: int) -> bytes:
        start, end = self.ends[number : number + 2]
        if start >= self._spooled:
            return bytes(self._held[start - self._spooled : end - self._spooled])
        with open(self._spool, "rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclasses.dataclass(frozen=True)
class Segment:
    """An encoded segment."""

    jpegs: JpegStore  # of the whole file
    frames: Sequence[int]  # their numbers there
    fps: float  # that of the source (see `decode.frame_rate`), or of the options if lower
    height: int
    width: int
    varies: bool = False  # whether the frame rate of the source varies within the segment
    repaired: int = 0  # frames whose time stamps were missing or did not increase


def encode_file(task: FileTask) -> list[Segment | str]:
    """Returns each segment, or the reason why it cannot be used; no content of a file raises."""
    options, store, size = task.options, JpegStore(task.spool), (0, 0)

    @functools.lru_cache(1)  # segments may share a frame
    def jpeg(frame: decode.Frame) -> int:
        nonlocal size
        size = height, width = frame.image.shape[:2]
        if max(size) > _JPEG_SIDE:
            limit = f"a JPEG has at most {_JPEG_SIDE} a side"
            raise decode.VideoError(f"{task.path}: {width} x {height} pixels; {limit}")
        if store.ends[-1] > options.max_gb * 2**30:
            raise decode.VideoError(f"{task.path}: its JPEGs take more than {options.max_gb:g} GB (--max_gb)")
        return store.add(encode_jpeg(frame.image, options.quality))

    selectors = [FrameSelector(start, end, options.fps, jpeg) for start, end in task.segments]
    last_end = max(selector.end for selector in selectors)
    waiting, active = sorted(selectors, key=lambda selector: -selector.start), []
    stated_fps, reached, problem = 0.0, -1.0, None
    try:
        for frame in decode.iterate_frames(task.path, last_end, options.short_side, options.fps):
            if frame.time > options.max_seconds:
                raise decode.VideoError(f"{task.path}: longer than {options.max_seconds:g} s (--max_seconds)")
            stated_fps, reached = frame.fps, frame.time
            while waiting and waiting[-1].start <= frame.time + decode.TIME_TOLERANCE:
                active.append(waiting.pop())
            active = [selector for selector in active if selector.offer(frame)]
        for selector in active:
            selector.finish()
    except decode.VideoError as error:
        problem = str(error)
    results: list[Segment | str] = []
    for selector in selectors:
        if problem and selector.end > reached:
            results.append(problem)
        elif not selector.frames:
            segment = f"{selector.start:g} s and {selector.end:g} s"
            results.append(f"{task.path}: no frames between {segment} (it ends at {reached:.2f} s)")
        else:
            fps, varies = decode.frame_rate(selector.times, stated_fps)
            fps = min(fps, options.fps or fps)
            results.append(Segment(store, selector.frames, fps, *size, varies, selector.repaired))
    return results


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encodes an image uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    # Shares the pixels; `Image.fromarray` copies them.
    Image.frombuffer("RGB", image.shape[1::-1], image, "raw", "RGB", 0, 1).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_video(path: storage.AnyPath, frames: Iterable[np.ndarray], fps: int) -> None:
    """Writes frames uint8 [H, W, 3] as an H.264 MP4 (H and W even) or an endless GIF or WebP, by the suffix."""
    first, *others = frames
    with storage.written(path) as partial, open(partial, "wb") as file:
        if path.suffix.lower() != ".mp4":
            options = {"append_images": map(Image.fromarray, others), "duration": round(1000 / fps), "loop": 0}
            Image.fromarray(first).save(file, path.suffix[1:].upper(), save_all=True, **options)
            return
        # As a file object: FFmpeg would take a name with a colon for a protocol.
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
            stream.thread_count = 1
            stream.options = {"preset": "ultrafast", "crf": "18"}
            for image in (first, *others):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())


class FrameSelector:
    """Selects the frames of one segment: all, or those of a lower frame rate.

    At `fps` frames per second, frame k is the last one up to k / fps after the segment's first; none is taken twice.
    """

    def __init__(self, start: float | None, end: float | None, fps: float | None, encode: Callable[..., Any]):
        self.start, self.end = start or 0.0, math.inf if end is None else end
        self._fps, self._encode = fps, encode
        self._pending: decode.Frame | None = None
        self._num_sampled = 0  # sampling times that have their frame
        self.times: list[float] = []  # of all frames of the segment
        self.frames: list[Any] = []  # what `encode` returns of each
        self.repaired = 0

    def offer(self, frame: decode.Frame) -> bool:
        """Receives the next frame, which is not before the start; returns False after the end of the segment."""
        if frame.time + decode.TIME_TOLERANCE >= self.end:
            self.finish()
            return False
        self.times.append(frame.time)
        self.repaired += frame.repaired
        if self._fps is None:
            self.frames.append(self._encode(frame))
        else:
            self._emit_until(frame.time - decode.TIME_TOLERANCE)
            self._pending = frame
        return True

    def finish(self) -> None:
        """Ends the segment; the last frame is as long as the one before it."""
        if self._pending:
            duration = self.times[-1] - self.times[-2] if len(self.times) > 1 else 1.0 / self._pending.fps
            self._emit_until(min(self._pending.time + duration, self.end) - decode.TIME_TOLERANCE)
            self._pending = None

    def _emit_until(self, time: float) -> None:
        """Selects the pending frame if a new sampling time is before `time`."""
        num_sampled = math.ceil((time - self.times[0]) * self._fps) if self._pending else 0
        if num_sampled > self._num_sampled:
            self.frames.append(self._encode(self._pending))
            self._num_sampled = num_sampled
