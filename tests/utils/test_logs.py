"""The pictures that a run logs for TensorBoard."""

import io

import numpy as np
from PIL import Image

from vivit_jax.utils import logs


class Writer:
    def write_summaries(self, step, values, metadata):
        self.step, self.values, self.metadata = step, values, metadata


def test_large_clips_are_shown_at_most_160_pixels_high():
    clips = np.zeros((5, 3, 330, 200, 3), np.uint8)
    clips[:] = np.reshape([0, 30, 60], (3, 1, 1, 1))  # equal frames would become one
    clips[3, 2, 300:, 150:] = 255  # of the last clip shown, in the last frame
    logs.write_clips(writer := Writer(), 7, "clips", clips)
    width, height, gif = writer.values["clips"]
    assert (writer.step, int(width), int(height)) == (7, 4 * 67, 110)
    with Image.open(io.BytesIO(gif)) as picture:
        assert (picture.n_frames, picture.size) == (3, (4 * 67, 110))
        picture.seek(2)
        bright = np.asarray(picture.convert("L")) > 128
    assert bright[100:, 3 * 67 + 50 :].all()
    assert bright.sum() == 10 * 17
