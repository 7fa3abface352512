"""Folders of numbered pictures as videos: order, size, frame rate, damage."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.videos import draw_number, encode_segment, read_video, shown_numbers
from vivit_jax.data.video import encode, frame_folder

OPTIONS = encode.EncodeOptions(None, 90, fps=12)


def pictures(folder, pattern: str, count: int):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        Image.fromarray(draw_number(number, 48, 64)).save(folder / pattern.format(number), quality=95)
    return folder


@pytest.mark.parametrize("pattern", ["{:05d}.jpg", "img_{:05d}.PNG", "frame{}.jpeg", "a b%03d{:010d}.png"])
def test_frames_in_the_order_of_their_numbers(tmp_path, pattern):
    folder = pictures(tmp_path / "x", pattern, 12)
    segment = encode_segment(folder, OPTIONS)
    assert shown_numbers(segment) == list(range(1, 13))
    assert (segment.fps, segment.varies, segment.height, segment.width) == (12, False, 48, 64)
    assert shown_numbers(encode_segment(folder, OPTIONS, (0.5, 0.75))) == [7, 8, 9]


def test_optical_flow_beside_the_frames_is_ignored(tmp_path):
    folder = pictures(tmp_path, "img_{:05d}.jpg", 3)
    for prefix in ("flow_x_", "flow_y_", "x_", "y_"):
        (folder / f"{prefix}00001.jpg").write_bytes(b"flow")
    assert shown_numbers(encode_segment(folder, OPTIONS)) == [1, 2, 3]


def test_size_of_the_first_frame(tmp_path):
    folder = pictures(tmp_path, "{}.png", 2)
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(folder / "3.png")  # grey
    assert read_video(folder, short_side=24).frames.shape == (3, 24, 32, 3)


def test_pictures_of_16_and_32_bits(tmp_path):
    grey = np.arange(0, 65_536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_video(tmp_path).frames[0, ..., 1], grey >> 8)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "2.tif")
    reason = encode_segment(tmp_path, OPTIONS)
    assert "2.tif: a picture that cannot be read (pixels of mode F, of unknown range; save it with 8 bits" in reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("img_00002.jpg", b"\xff\xd8cut short", "img_00002.jpg: a picture that cannot be read"),
        ("other_00001.jpg", b"", "the pictures are not the frames of one video: img_*, other_*"),
    ],
)
def test_damage(tmp_path, name, content, reason):
    folder = pictures(tmp_path, "img_{:05d}.jpg", 3)
    (folder / name).write_bytes(content)
    assert reason in encode_segment(folder, OPTIONS)


def test_names_that_are_no_frames():
    assert frame_folder.frame_names(["cover.jpg", "._1.jpg", "1.txt", "10.JPG", "9.jpg", "Thumbs.db"]) == [
        "9.jpg",
        "10.JPG",
    ]
