"""Decoding of a video file with PyAV: its RGB frames in order, upright and resized.

Decodes from the first frame, since seeking is inexact in some containers; one thread, since callers use all cores.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from vivit_jax.data.video import frame_folder, rgb
from vivit_jax.data.video.packets import DAMAGE, Packets, is_encrypted, reason
from vivit_jax.utils import storage

# Containers round time stamps to their time base; segments start and end within this many seconds.
TIME_TOLERANCE = 1e-3
# A video may lack this share of its length, and one frame more. If more is missing or damaged, it is rejected.
LOSS_TOLERANCE = 0.1

# Only the file itself is opened: a playlist named like a video refers to others, which FFmpeg would read, or fetch.
_LISTS = {"avisynth", "concat", "dash", "hls", "imf", "lavfi", "rtsp", "sdp", "vapoursynth", "vobsub"}
_FORMATS = ",".join(name for name in av.formats_available if _LISTS.isdisjoint(name.split(",")))
_OPEN = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
# Metadata may be in any encoding and is not needed; PyAV before 19 fails on it by default.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_log = logging.getLogger(__name__)


class VideoError(ValueError):
    """A file without a usable video."""


@dataclasses.dataclass(eq=False)
class Frame:
    """One decoded frame, converted to RGB on first access."""

    decoded: Any
    time: float  # seconds from the video's first frame
    fps: float  # that the stream states
    repaired: bool  # whether `time` is estimated, as the file has none or one that does not increase
    convert: Callable[[Any], np.ndarray]

    @functools.cached_property
    def image(self) -> np.ndarray:
        """RGB, uint8 [H, W, 3], 0 to 255 for any range and depth of the file."""
        return self.convert(self.decoded)


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
    path: storage.PathLike,
    end: float | None = None,
    short_side: int | None = None,
    fps: float | None = None,
    max_pixels: int = frame_folder.MAX_PIXELS,
) -> Iterator[Frame]:
    """Yields the frames of a file's first video stream that is not a cover picture, in order of display.

    `path` is of any container and codec of FFmpeg, or a folder of numbered pictures (`frame_folder`), `fps` a second
    (None: 25). `end`: only frames before this many seconds. `short_side`: resize (bicubic) to this many pixels; smaller
    videos keep their size. A video whose frames have more than `max_pixels` is not decoded.

    All frames have the size of the first, and their times are strictly increasing (see `_Clock`). A stream that begins
    between key frames is decoded from the first one. Raises VideoError, also if more than `LOSS_TOLERANCE` of the
    length is damaged or missing; up to that, the frames before the damage are the video. Logs what is left out.
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
            file = stack.enter_context(storage.local(path))  # one in a bucket is copied to the temporary folder
        except OSError as error:
            raise VideoError(f"{path}: {reason(error)}") from error
        try:
            container = stack.enter_context(_opened(file))
        except DAMAGE as error:
            what = "a list of other files, or " * isinstance(error, av.error.ArgumentError)  # a format not of _FORMATS
            raise VideoError(f"{path}: {what}not a video that can be read, or cut short ({reason(error)})") from error
        form = container.format.name
        try:
            frames = _decode(path, container, end, short_side, max_pixels)
            if form.endswith("_pipe"):  # a picture, or several in one file
                begin = []
                with contextlib.suppress(VideoError):
                    begin.extend(itertools.islice(frames, 2))
                if len(begin) < 2:
                    raise VideoError(f"{path}: a picture, not a video ({form})")
                yield from begin
            yield from frames
        except VideoError as error:
            if is_encrypted(file, form):
                raise VideoError(f"{path}: encrypted; decrypt it first") from error
            raise


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


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[av.container.InputContainer]:
    """Opens a local file, whatever its name."""
    with contextlib.ExitStack() as stack:
        # FFmpeg reads patterns in some names (`%03d.gif`), and PyAV takes none that are not UTF-8.
        if re.search("[%\ud800-\udfff]", os.fspath(file)):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vivit_jax-"))
            link = Path(folder, "video" + re.sub(r"[^.\w]", "", file.suffix, flags=re.ASCII))
            link.symlink_to(file.absolute())
            file = link
        # Not as stream options: with those, PyAV before 18 crashes on files that announce streams late (FLV).
        yield stack.enter_context(av.open(f"file:{file}", container_options=_OPEN, **_METADATA))


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Returns the first video stream that is not a cover picture."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


class _Clock:
    """Converts the time stamps of a file to seconds from its first frame, strictly increasing.

    A frame without a stamp (AVI with B-frames) follows 1 / fps after the previous one. A frame with a repeated stamp
    follows half of that later, and later stamps are used again. Where stamps jump back or keep repeating (concatenated
    recordings), they count from 1 / fps after the previous frame.
    """

    def __init__(self, fps: float):
        self._step = 1.0 / fps
        self.origin = self._last = None  # time stamp at 0 seconds, previous time
        self._repeats = False

    def __call__(self, stamp: float | None) -> tuple[float, bool]:
        """Returns (time, whether it is estimated) of the next frame."""
        following = 0.0 if self._last is None else self._last + self._step
        if stamp is not None and self.origin is None:
            self.origin = stamp - following
        time = following if stamp is None else stamp - self.origin
        late = self._last is not None and time <= self._last
        if late and not self._repeats and self._last - time < self._step:
            time = self._last + self._step / 2
        elif late:
            time, self.origin = following, stamp - following
        self._last, self._repeats = time, late
        return time, late or stamp is None


def _decode(path, container, end, short_side, max_pixels) -> Iterator[Frame]:
    """Yields the frames of an opened file; arguments and errors as of `iterate_frames`."""
    stream = _video_stream(container)
    if not stream:
        covers = " but a cover picture" if container.streams.video else ""
        raise VideoError(f"{path}: no video stream in it{covers}")
    try:
        stream.thread_count = 1
        # By default FFmpeg conceals damage silently, and accepts any size in a header.
        stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(max_pixels)}
        frame_folder.check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
    except (AttributeError, RuntimeError) as error:
        raise VideoError(f"{path}: no decoder for its video stream") from error
    except ValueError as error:
        raise VideoError(f"{path}: {error}") from error
    fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    clock, source, decoded = _Clock(fps), Packets(container, stream, fps), 0
    converter = rgb.Converter(short_side, stream.codec_context.color_trc)

    def convert(frame: av.VideoFrame) -> np.ndarray:
        try:
            return converter(frame)
        except DAMAGE as error:
            raise VideoError(f"{path}: a frame cannot be converted to RGB ({reason(error)})") from error

    for decoded, frame in enumerate(source.frames(), start=1):
        time, repaired = clock(source.stamp(frame))
        before = source.note_frame(time + (clock.origin or 0.0))
        if decoded == 1 and source.skipped:
            begin = f"its first {before:.2f} s ({source.skipped} frames) cannot be decoded"
            _log.warning("%s: begins between key frames: %s and are left out", path, begin)
        if end is not None and time >= end - TIME_TOLERANCE:
            return
        yield Frame(frame, time, fps, repaired, convert)
    problem = source.problem
    if decoded == 0:
        what = f"broken after 0 frames ({problem})" if problem else "no frames could be decoded from its video stream"
        raise VideoError(f"{path}: {what}")
    length, lost = source.lost()
    if lost > LOSS_TOLERANCE * length + 1 / fps:
        if problem or source.holes:
            raise VideoError(f"{path}: broken after {decoded} frames ({problem or 'lost packets'})")
        expected = decoded * length / (length - lost)
        raise VideoError(f"{path}: cut short: {decoded} frames of about {expected:.0f} that its header announces")
    if problem or lost > 3 / fps:
        what = f"{lost:.2f} of {length:.2f} s are damaged or missing and left out ({problem or 'cut short'})"
        _log.warning("%s: %s", path, what)


def count_packets(path: storage.PathLike) -> int:
    """Returns the packets of a video's stream, without decoding: of most files the number of frames; 0 if unknown."""
    path = storage.path(path)
    # Errors are those of `iterate_frames`, which has the messages. Opening a pipe would wait for ever.
    with contextlib.suppress(OSError, *DAMAGE):
        if path.is_dir():
            return len(frame_folder.frame_names(storage.names(path)))
        if path.is_file():
            with storage.local(path) as file, _opened(file) as container:
                stream = _video_stream(container)
                return sum(packet.size > 0 for packet in container.demux(stream)) if stream else 0
    return 0
