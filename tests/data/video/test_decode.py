"""Decoding: the right frames, upright, at the right times; bad files raise `VideoError`."""

import re
import struct

import numpy as np
import pytest

from tests.helpers.videos import bad_files, numbered_video, read_number, read_video, write_video
from vivit_jax.data.video import decode

# Height and width, frames per second, number of frames of each clip, from its README.
CLIPS = {
    "arm_wrestling.mp4": ((256, 340), 28, 280),
    "hurdling.mp4": ((180, 320), 25, 252),
    "cleaning_pool.mp4": ((256, 340), 30, 32),
    "eye_makeup.avi": ((240, 320), 25, 164),
    "nasa_assembly.mp4": ((180, 320), 25, 325),
    "water_bottle_drumming.mp4": ((512, 512), 12, 100),
    "h265_video.mp4": ((128, 128), 10, 10),
    "av1_video.mkv": ((360, 640), 25, 125),
    "h264_10bits.mp4": ((200, 200), 30, 30),
}


@pytest.mark.parametrize("name", CLIPS)
def test_reads_real_clips(shared, name):
    size, fps, count = CLIPS[name]
    video = read_video(shared / "videos" / name)
    assert video.frames.shape == (count, *size, 3)
    assert video.fps == pytest.approx(fps)
    assert (np.diff(video.times) > 0).all()
    assert video.times[-1] == pytest.approx((count - 1) / fps, abs=0.1)
    assert video.frames.std() > 10  # not a constant gray


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_frames_in_order(tmp_path, suffix):
    path = numbered_video(tmp_path / f"v{suffix}", 50)
    video = read_video(path)
    assert [read_number(frame) for frame in video.frames] == list(range(50))
    np.testing.assert_allclose(video.times, np.arange(50) / 25, atol=2e-3)


def test_cut_and_short_side(tmp_path):
    path = numbered_video(tmp_path / "v.mp4", 60, fps=20, height=96, width=160)
    video = read_video(path, end=2.0, short_side=48)
    assert [read_number(frame) for frame in video.frames] == list(range(40))
    assert video.frames.shape == (40, 48, 80, 3)
    assert read_video(path, short_side=500).frames.shape[1:3] == (96, 160), "never enlarged"


def test_limited_range_is_expanded(tmp_path):
    """Black and white are 16 and 235 in the video, 0 and 255 in the frames."""
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    frames[:, 32:] = 255
    video = read_video(write_video(tmp_path / "v.mp4", frames))
    assert np.abs(video.frames.astype(int) - frames).max() <= 2


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)
def test_display_matrix_is_applied(tmp_path, a, b, c, d):
    """Rotations, as of a phone's portrait videos, and mirror images: pixel (x, y) is shown at (ax + cy, bx + dy)."""
    frames = np.zeros((4, 64, 128, 3), np.uint8)
    frames[:, :32, :64] = 255  # the quadrant around (-1, -1)
    path = write_video(tmp_path / "v.mp4", frames)
    data, (identity, matrix) = path.read_bytes(), (
        struct.pack(">9i", *(i << 16 for i in (p, q, 0, r, s, 0, 0, 0)), 1 << 30)
        for p, q, r, s in ((1, 0, 0, 1), (a, b, c, d))
    )  # fmt: skip
    start = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:start] + matrix + data[start + len(identity) :])
    image = read_video(path).frames[0, ..., 0]
    assert image.shape == ((64, 128) if a else (128, 64))
    image = image[:: 1 if b + d > 0 else -1, :: 1 if a + c > 0 else -1]
    height, width = image.shape
    assert image[: height // 2 - 4, : width // 2 - 4].min() > 240
    assert max(image[height // 2 + 4 :].max(), image[:, width // 2 + 4 :].max()) < 15


def test_bad_files(tmp_path):
    expected = {
        "empty": "empty",
        "text": "not a video",
        "random": "not a video",
        "truncated": "cut short",
        "streamed_truncated": "cut short|broken",
        "audio": "no video stream",
    }
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(decode.VideoError, match=expected[name]) as caught:
            read_video(path)
        assert str(path) in str(caught.value)
    with pytest.raises(decode.VideoError, match=re.escape("nowhere.mp4: no such file")):
        read_video(tmp_path / "nowhere.mp4")
