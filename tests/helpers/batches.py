"""Clip specs, and helpers to take and compare batches."""

import numpy as np

from vivit_jax.data import pipeline

PLAIN = pipeline.ClipSpec(8, (64, 64), stride=2)
VARIED = pipeline.ClipSpec(
    8, (48, 56), stride=3, short_side=60, scale_jitter=(0.9, 1.33), random_crop=True, flip_probability=0.5
)


def take(batches, count):
    """Returns the first batches, and closes the stream."""
    with batches:
        return [next(batches) for _ in range(count)]


def assert_same(first, second):
    assert first["label"].keys() == second["label"].keys()
    for key in ("video", "mask", "index"):
        np.testing.assert_array_equal(first[key], second[key])
    for head, values in first["label"].items():
        np.testing.assert_array_equal(values, second["label"][head])
