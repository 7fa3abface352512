"""Decoding: the right frames, upright, at the right times; bad files raise `VideoError`."""

import re

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


def test_rotation_is_applied(tmp_path):
    """A portrait video of a phone: landscape frames, and a matrix that rotates them 90 degrees clockwise."""
    frames = np.zeros((8, 64, 128, 3), np.uint8)
    frames[:, :, :64] = 255  # the left half is bright; after the rotation, the upper half is
    path = write_video(tmp_path / "v.mp4", frames)
    data = path.read_bytes()
    unit = b"\x00\x01\x00\x00"
    minus = b"\xff\xff\x00\x00"
    zero = b"\x00\x00\x00\x00"
    last = b"\x40\x00\x00\x00"
    identity = unit + zero + zero + zero + unit + zero + zero + zero + last
    rotation = zero + unit + zero + minus + zero + zero + zero + zero + last
    start = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:start] + rotation + data[start + len(identity) :])
    video = read_video(path)
    assert video.frames.shape == (8, 128, 64, 3)
    assert video.frames[:, :60].min() > 240
    assert video.frames[:, 68:].max() < 15


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
