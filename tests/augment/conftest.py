"""Clips for the tests of augmentation."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def synthetic():
    """Smooth colours in part of the range, and one constant channel: [2, 37, 50, 3]."""
    t, y, x = np.meshgrid(np.arange(2), np.arange(37), np.arange(50), indexing="ij")
    red = 40 + 3 * x + 17 * t + np.random.default_rng(0).integers(0, 9, x.shape)
    return np.stack([red, 200 - 4 * y + t, np.full_like(x, 90)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module", params=["synthetic", "arm_wrestling.mp4"])
def clip(request, synthetic):
    """The synthetic clip, and two frames of a real one."""
    if request.param == "synthetic":
        return synthetic
    av = pytest.importorskip("av")
    with av.open(str(request.getfixturevalue("shared") / "videos" / request.param)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    return np.stack(frames[::200][:2]) // 2 + 40  # in part of the range, so that stretching it shows
