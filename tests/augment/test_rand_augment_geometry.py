"""RandAugment's set `video`: rotation, shears and translations against Pillow, and their frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vivit_jax import augment
from vivit_jax.augment import rand_augment

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def pillow(frame, name, strength):
    """One operation of RandAugment on a frame, with Pillow as in the authors' code."""
    image = Image.fromarray(frame)
    grey = (128, 128, 128)
    if name == "Rotate":
        return np.asarray(image.rotate(strength, Image.Resampling.BILINEAR, fillcolor=grey))
    matrix = {
        "ShearX": (1, strength, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, strength, 1, 0),
        "TranslateX": (1, 0, strength, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, strength),
    }[name]
    return np.asarray(
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=grey)
    )


def check(got, expected, name):
    """Checks equality but for rounding, and for a few pixels that float32 places outside the frame."""
    difference = np.abs(np.asarray(got).astype(int) - expected)
    assert got.dtype == np.uint8
    assert (difference > 1).mean() < 2e-3, name
    assert (difference > 0).mean() < 0.02, name


@pytest.mark.parametrize("magnitude", [4.0, 15.0])
def test_geometric_operations_match_pillow(clip, magnitude):
    operations = rand_augment.operations(magnitude, "video")
    assert set(operations) - set(rand_augment.operations(magnitude)) == set(GEOMETRIC)
    m, (height, width) = magnitude / 10, clip.shape[1:3]
    strengths = {
        "Rotate": 30 * m, "ShearX": 0.3 * m, "ShearY": 0.3 * m,
        "TranslateX": int(m * 100 / 224 * width), "TranslateY": int(m * 100 / 224 * height),
    }  # fmt: skip
    for name, strength in strengths.items():
        run = jax.jit(operations[name])
        outs = {np.asarray(run(jnp.asarray(clip), jax.random.key(seed))).tobytes() for seed in range(20)}
        assert len(outs) == 2, name  # one for each sign
        actual = [np.frombuffer(out, np.uint8).reshape(clip.shape) for out in outs]
        both = [np.stack([pillow(frame, name, sign * strength) for frame in clip]) for sign in (1, -1)]
        if np.abs(actual[0].astype(int) - both[0]).mean() > np.abs(actual[1].astype(int) - both[0]).mean():
            actual.reverse()
        for got, expected in zip(actual, both, strict=True):
            check(got, expected, name)


def test_affine_transforms_match_pillow(synthetic):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (2, 23, 31, 3), dtype=np.uint8)  # all neighbours differ
    for _ in range(5):
        matrix = tuple((np.eye(2, 3) + rng.uniform(-0.4, 0.4, (2, 3)) * (1, 1, 20)).ravel().tolist())
        image = [Image.fromarray(frame) for frame in noise]
        expected = [
            i.transform(
                i.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(rand_augment.FILL,) * 3
            )
            for i in image
        ]
        check(rand_augment.affine(jnp.asarray(noise), matrix), np.stack([np.asarray(w) for w in expected]), matrix)
    for identity in (
        rand_augment.rotate(jnp.asarray(synthetic), 0.0),
        rand_augment.affine(jnp.asarray(synthetic), (1, 0, 0, 0, 1, 0)),
    ):
        np.testing.assert_array_equal(identity, synthetic)


def test_only_the_video_set_moves_pixels():
    white = jnp.full((200, 1, 8, 8, 3), 255, jnp.uint8)
    for ops, probability in (("paper", 0), ("video", 5 / 17)):
        config = augment.AugmentConfig(rand_augment_layers=1, rand_augment_magnitude=8.0, rand_augment_ops=ops)
        seen = jax.jit(lambda video, config=config: augment.augment_pixels(jax.random.key(0), video, config))(white)
        moved = (
            (np.asarray(seen) == rand_augment.FILL).any(axis=(1, 2, 3, 4)).mean()
        )  # no other operation produces this grey
        assert abs(moved - probability) <= 4 * np.sqrt(probability * (1 - probability) / 200)
