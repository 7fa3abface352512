"""Test videos whose frames show their numbers in binary, and files that are no usable videos."""

import fractions
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from vivit_jax.data.video import decode, encode

BITS = 8
COUNT = 20
ALL = list(range(COUNT))
# Time stamps of `COUNT` frames in milliseconds: a variable frame rate, and stamps that occur twice.
VARIABLE = [0, 40, 80, 120, 300, 340, 380, 400, 440, 480, 520, 900, 940, 980, 1020, 1060, 1100, 1140, 1180, 1220]
DOUBLED = [0, 40, 80, 120, 120, 200, 240, 280, 320, 360, 400, 440, 440, 520, 560, 600, 640, 680, 720, 760]


def draw_number(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Draws `number` in binary: two rows of four fields, bright for 1; uint8 [height, width, 3]."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8).reshape(2, 4)
    fields = np.kron(bits * 170 + 40, np.ones((height // 2, width // 4), np.uint8))
    return np.repeat(fields[..., None], 3, axis=-1)


def read_number(frame: np.ndarray) -> int:
    """Reads the number in a frame of `draw_number`, of any size."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 4
    centres = frame[height // 2 :: height, width // 2 :: width].mean(axis=-1)[:2, :4].reshape(-1)
    return int(sum(1 << bit for bit, value in enumerate(centres) if value > 128))


def write_video(
    path: Path,
    images: Sequence[np.ndarray] | None = None,
    fps=25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    **codec_context,
) -> Path:
    """Writes a video in the container of the suffix.

    Args:
      path: of the file; its folder is created.
      images: uint8 [H, W, 3] each; None: `COUNT` numbered frames of 48 x 64 pixels.
      fps, codec, pix_fmt: of the stream.
      stamps: time stamp of each frame in milliseconds.
      options, muxer: of the codec and of the container.
      **codec_context: attributes of the codec context.
    """
    images = [draw_number(i, 48, 64) for i in ALL] if images is None else images
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = images[0].shape[0], images[0].shape[1], pix_fmt
        quality = {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
        stream.options = quality | (options or {})
        if stamps:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for name, value in codec_context.items():
            setattr(stream.codec_context, name, value)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps:
                frame.pts, frame.time_base = stamps[number], fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered_video(path: Path, count: int, fps=25, height: int = 64, width: int = 64, codec: str = "libx264") -> Path:
    """Writes a video of `count` numbered frames."""
    return write_video(path, [draw_number(i, height, width) for i in range(count)], fps, codec)


class Video(NamedTuple):
    frames: np.ndarray
    times: np.ndarray
    fps: float


def read_video(path: Path, end=None, short_side=None) -> Video:
    """Decodes all frames, uint8 [T, H, W, 3], with their times in seconds and the frame rate."""
    frames = list(decode.iterate_frames(path, end, short_side))
    times = np.array([frame.time for frame in frames])
    return Video(np.stack([frame.image for frame in frames]), times, decode.frame_rate(times, frames[-1].fps)[0])


def encode_segment(path: Path, options: encode.EncodeOptions | None = None, segment=(None, None)):
    """Returns the encoded segment of a file, or the reason why there is none."""
    return encode.encode_file(encode.FileTask(path, [segment], options or encode.EncodeOptions(None, 90)))[0]


def shown_numbers(segment: encode.Segment) -> list[int]:
    """Reads the numbers in the frames of a segment, and checks that no frame is damaged."""
    numbers = []
    for jpeg in map(segment.jpegs.__getitem__, segment.frames):
        frame = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert frame.shape == (segment.height, segment.width, 3)
        numbers.append(read_number(frame))
        drawn = draw_number(numbers[-1], *frame.shape[:2])
        inner = np.s_[frame.shape[0] // 4 : frame.shape[0] // 2 - 1]
        if drawn.shape == frame.shape:
            assert np.abs(drawn[inner].astype(int) - frame[inner]).mean() < 25, f"frame {numbers[-1]} is damaged"
    return numbers


def bad_files(folder: Path) -> dict[str, Path]:
    """Writes files that are no usable videos; returns them by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = numbered_video(folder / "whole.mp4", 60)
    streamed = numbered_video(folder / "streamed.mkv", 60)
    files = {name: folder / f"{name}.mp4" for name in ("empty", "text", "random", "truncated", "audio")}
    files["streamed_truncated"] = folder / "streamed_truncated.mkv"
    files["empty"].write_bytes(b"")
    files["text"].write_text("<html><body>video unavailable</body></html>")
    files["random"].write_bytes(np.random.default_rng(0).bytes(20_000))
    files["truncated"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["streamed_truncated"].write_bytes(streamed.read_bytes()[: streamed.stat().st_size // 2])
    with av.open(str(files["audio"]), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    whole.unlink()
    streamed.unlink()
    return files
