"""Decoding of a video file with PyAV: its RGB frames in order, upright and resized.

Always decodes from the first frame, since seeking is inexact in some containers, and with one thread, since callers run
one process per core.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from vivit_jax.data.video import frame_folder
from vivit_jax.utils import storage

# Containers round time stamps to their time base; segments start and end within this many seconds.
TIME_TOLERANCE = 1e-3
# Newer PyAV converts with several threads by default, which is slower for frames this small.
_CONVERSION = {"interpolation": Interpolation.BICUBIC}
if "threads=" in (VideoReformatter.reformat.__doc__ or ""):
    _CONVERSION["threads"] = 1

# Matroska's tag with the duration of one stream.
_TAG = re.compile(r"\d+:\d\d:\d\d(\.\d+)?$")
# What PyAV raises on damaged files: FFmpeg's errors, and its own on invalid values.
_DAMAGE = (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError)
# Opens nothing but the file itself: a playlist named like a video refers to other files or the network.
_OPEN = {"protocol_whitelist": "file"}
# Metadata may be in any encoding and is not needed; PyAV before 19 fails on it by default.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_PLAYLISTS = {"concat", "hls", "dash", "imf", "sdp", "rtsp"}
# By default FFmpeg conceals damage silently, and accepts any size in a header (8K is 33 million pixels).
_DECODER = {"err_detect": "explode", "max_pixels": str(1 << 26)}


class VideoError(ValueError):
    """A file without a usable video."""


class Frame:
    """One decoded frame, converted to RGB on first access."""

    def __init__(self, frame: Any, time: float, fps: float, repaired: bool, convert: Callable):
        self.time = time  # seconds from the video's first frame
        self.fps = fps  # that the stream states
        self.repaired = repaired  # whether `time` is estimated, as the file has none or one that does not increase
        self._frame, self._convert = frame, convert

    @functools.cached_property
    def image(self) -> np.ndarray:
        """RGB, uint8 [H, W, 3], 0 to 255 for any range and depth of the file."""
        return self._convert(self._frame)


class _Converter:
    """Converts decoded frames to upright RGB, all in the output size of the first."""

    def __init__(self, path: storage.AnyPath, short_side: int | None):
        self._path, self._short_side, self._size = path, short_side, None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = round((frame.rotation or 0) / 90) % 4
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        if self._size is None:
            shorter = min(height, width)
            short_side = min(self._short_side or shorter, shorter)
            self._size = round(height * short_side / shorter), round(width * short_side / shorter)
        height, width = self._size[::-1] if turns % 2 else self._size
        try:
            rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", **_CONVERSION)
            # FFmpeg pads rows; the array is a view of them until copied.
            return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))
        except _DAMAGE as error:
            raise VideoError(f"{self._path}: a frame cannot be converted to RGB ({_reason(error)})") from error


def frame_rate(times: Sequence[float], stated: float) -> tuple[float, bool]:
    """Returns (frames per second, whether the rate varies) of frames at `times` seconds, strictly increasing.

    A constant rate is the `stated` one if the times agree with it to 1 % or the 2 ms of rounding in containers,
    otherwise the mean rate; a variable rate is that of the median interval.
    """
    gaps = np.diff(times)
    if not len(gaps):
        return stated, False
    median = float(np.median(gaps))
    if (np.abs(gaps - median) > 2e-3 + 0.02 * median).any():
        return 1.0 / median, True
    span = float(times[-1] - times[0])
    agrees = abs(len(gaps) / stated - span) <= max(2e-3, 0.01 * span)
    return (stated if agrees else len(gaps) / span), False


def iterate_frames(
    path: storage.PathLike, end: float | None = None, short_side: int | None = None, fps: float | None = None
) -> Iterator[Frame]:
    """Yields the frames of a file's first video stream that is not a cover picture, in order of display.

    All frames have the size of the first, and their times are strictly increasing (see `_Clock`). Raises VideoError,
    also for broken data and fewer frames than the header announces.

    Args:
      path: of any container and codec of FFmpeg; a file in a bucket is copied to the temporary folder first.
      end: seconds from the video's start, only frames before it; None: all.
      short_side: resize (bicubic) so that the short side has this many pixels; smaller videos keep their size.
      fps: frames per second if `path` is a folder of numbered pictures (`frame_folder`); None: 25.
    """
    path = storage.path(path)
    if path.is_dir():
        yield from _iterate_pictures(path, end, short_side, fps or 25.0)
        return
    with contextlib.ExitStack() as stack:
        try:
            if not storage.is_remote(path) and path.is_symlink() and not path.exists():
                raise VideoError(f"{path}: a link to a file that is not there")
            if not path.is_file():
                raise VideoError(f"{path}: {storage.absence(path)}")
            if storage.size(path) == 0:
                raise VideoError(f"{path}: the file is empty (0 bytes)")
            file = stack.enter_context(storage.local(path))
        except OSError as error:
            raise VideoError(f"{path}: {_reason(error)}") from error
        yield from _iterate(path, file, end, short_side)


def _iterate_pictures(folder: storage.AnyPath, end: float | None, short_side: int | None, fps: float):
    """Yields the frames of a folder; raises VideoError."""
    try:
        names = frame_folder.frame_names(storage.names(folder))
    except (OSError, ValueError) as error:
        raise VideoError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
    if not names:
        raise VideoError(f"{folder}: a folder, not a file, and without numbered pictures as 00001.jpg or img_00001.png")
    read = frame_folder.Converter(short_side)

    def convert(name: str) -> np.ndarray:
        try:
            return read(folder / name)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(f"{folder / name}: a picture that cannot be read ({error})") from error

    for number, name in enumerate(names):
        if end is not None and number / fps >= end - TIME_TOLERANCE:
            return
        yield Frame(name, number / fps, fps, False, convert)


def _iterate(path, file, end, short_side) -> Iterator[Frame]:
    """Yields the frames of the local file `file`; `path` is for messages."""
    try:
        # Not as stream options: with those, PyAV before 18 crashes on files that announce streams late (FLV).
        container = av.open(str(file), container_options=_OPEN, **_METADATA)
    except _DAMAGE as error:
        raise VideoError(f"{path}: not a video that can be read, or cut short ({_reason(error)})") from error
    with container:
        form = container.format.name
        if form == "image2" or form.endswith("_pipe"):
            raise VideoError(f"{path}: a picture, not a video ({form})")
        if _PLAYLISTS & set(form.split(",")):
            raise VideoError(f"{path}: a list of other files, not a video ({form})")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            covers = " but a cover picture" if container.streams.video else ""
            raise VideoError(f"{path}: no video stream in it{covers}")
        stream = streams[0]
        try:
            stream.thread_count = 1
            stream.codec_context.options = _DECODER
        except (AttributeError, RuntimeError) as error:
            raise VideoError(f"{path}: no decoder for its video stream") from error
        yield from _decode(path, container, stream, end, short_side)


class _Clock:
    """Converts the time stamps of a file to seconds from its first frame, strictly increasing.

    A frame without a stamp (AVI with B-frames) follows 1 / fps after the previous one. A frame with a repeated stamp
    follows half of that later, and later stamps are used again. Where stamps jump back or keep repeating (concatenated
    recordings), they count from 1 / fps after the previous frame.
    """

    def __init__(self, fps: float):
        self._step = 1.0 / fps
        self._origin = self._last = None
        self._repeats = False

    def __call__(self, stamp: float | None) -> tuple[float, bool]:
        """Returns (time, whether it is estimated) of the next frame."""
        following = 0.0 if self._last is None else self._last + self._step
        if stamp is not None and self._origin is None:
            self._origin = stamp - following
        time = following if stamp is None else stamp - self._origin
        late = self._last is not None and time <= self._last
        if late and not self._repeats and self._last - time < self._step:
            time = self._last + self._step / 2
        elif late:
            time, self._origin = following, stamp - following
        self._last, self._repeats = time, late
        return time, late or stamp is None


def _decode(path, container, stream, end, short_side) -> Iterator[Frame]:
    fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    clock, decoded, lead, convert = _Clock(fps), 0, 0.0, _Converter(path, short_side)
    # AVI has no presentation times: FFmpeg guesses them wrong for B-frames; decoding times increase steadily.
    avi = container.format.name == "avi"
    try:
        for frame in itertools.chain.from_iterable(packet.decode() for packet in _whole_packets(container, stream)):
            if frame.is_corrupt:
                raise ValueError("a damaged frame")
            decoded += 1
            stamp = frame.dts if avi else frame.pts
            if decoded == 1 and stamp is not None and stream.start_time is not None:
                # A stream that begins between key frames is decoded from the first key frame.
                lead = float((stamp - stream.start_time) * frame.time_base)
            time, repaired = clock(None if stamp is None else float(stamp * frame.time_base))
            if end is not None and time >= end - TIME_TOLERANCE:
                return
            yield Frame(frame, time, fps, repaired, convert)
    except _DAMAGE as error:
        raise VideoError(f"{path}: broken after {decoded} frames ({_reason(error)})") from error
    if decoded == 0:
        raise VideoError(f"{path}: no frames could be decoded from its video stream")
    expected = _announced_frames(container, stream, fps, lead)
    if decoded < 0.9 * expected - 1:
        raise VideoError(f"{path}: cut short: {decoded} frames of about {expected:.0f} that its header announces")


def _whole_packets(container, stream) -> Iterator[av.Packet]:
    """Yields the packets of the stream, except those from a damaged one up to the next key frame.

    FFmpeg would repeat other frames in their place.
    """
    hole = False
    for packet in container.demux(stream):
        # The last packet is empty and flushes the decoder.
        hole = packet.size > 0 and (packet.is_corrupt or (hole and not packet.is_keyframe))
        if not hole:
            yield packet


def _announced_frames(container, stream, fps: float, lead: float) -> float:
    """Returns the number of frames that the header announces, without the first `lead` seconds; 0 if unknown.

    In MP4 and MOV an edit list may remove frames, which shortens the duration but not the count; in other containers
    the duration may be a guess from the file size, and the count is more reliable. The duration of the file is that of
    its longest stream, which may be the sound.
    """
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif _TAG.match(stream.metadata.get("DURATION", "")):
        hours, minutes, rest = stream.metadata["DURATION"].split(":")
        seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    else:
        seconds = (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
    by_duration = max(0.0, seconds - max(0.0, lead)) * fps
    if stream.frames and "mp4" in container.format.name and by_duration:
        return min(float(stream.frames), by_duration)
    return float(stream.frames) or by_duration


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def count_packets(path: storage.PathLike) -> int:
    """Returns the packets of a video's stream, without decoding: of most files the number of frames; 0 if unknown."""
    path = storage.path(path)
    # Errors are those of `iterate_frames`, which has the messages. Opening a pipe would wait for ever.
    with contextlib.suppress(OSError, *_DAMAGE):
        if path.is_dir():
            return len(frame_folder.frame_names(storage.names(path)))
        if path.is_file():
            with (
                storage.local(path) as file,
                av.open(f"file:{file}", container_options=_OPEN, **_METADATA) as container,
            ):
                streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
                return sum(packet.size > 0 for packet in container.demux(streams[0])) if streams else 0
    return 0
