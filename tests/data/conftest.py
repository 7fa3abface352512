"""Videos made for these tests: a tiny moving_digits, and clips that have their frame numbers drawn into them."""

import fractions
from pathlib import Path

import av
import numpy as np
import pytest

from vivit_jax.data import build

BITS = 8


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of data sets with moving_digits in it: 48 training and 16 validation videos, generated and built."""
    folder = tmp_path_factory.mktemp("data")
    build.prepare("moving_digits", folder, num_workers=0, progress=False, train=48, validation=16)
    return folder


@pytest.fixture(scope="session")
def tiny_records(tiny) -> Path:
    return build.records_folder("moving_digits", tiny)


def draw_number(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A frame that shows `number` in binary: two rows of four fields, bright for 1; uint8 [height, width, 3]."""
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8).reshape(2, 4)
    fields = np.kron(bits * 170 + 40, np.ones((height // 2, width // 4), np.uint8))
    return np.repeat(fields[..., None], 3, axis=-1)


def read_number(frame: np.ndarray) -> int:
    """The number in a frame drawn by `draw_number`, whatever its size."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 4
    centres = frame[height // 2 :: height, width // 2 :: width].mean(axis=-1)[:2, :4].reshape(-1)
    return int(sum(1 << bit for bit, value in enumerate(centres) if value > 128))


def write_video(path: Path, frames: np.ndarray, fps: int = 25, codec: str = "libx264", **options: str) -> Path:
    """Encodes uint8 [T, H, W, 3]; the container is that of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered_video(path: Path, count: int, fps: int = 25, height: int = 64, width: int = 64, **options: str) -> Path:
    return write_video(path, np.stack([draw_number(i, height, width) for i in range(count)]), fps, **options)


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no usable video, by what is wrong with them."""
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
