"""Random erasing against its paper: area, aspect, position, noise and frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vivit_jax.augment import AugmentConfig, augment_pixels
from vivit_jax.augment.pixels import clip_keys, erase, erased_box

SIZE = (90, 120)


@pytest.fixture(scope="module")
def boxes():
    """(top, left, height, width) of 2000 boxes, each checked to be a full rectangle."""
    keys = clip_keys(jax.random.key(0), 2000)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: erased_box(key, SIZE, (0.05, 0.2), 0.4)))(keys))
    rows, columns = erased.any(2), erased.any(1)
    np.testing.assert_array_equal(erased, rows[:, :, None] & columns[:, None])
    top, left = rows.argmax(1), columns.argmax(1)
    height, width = rows.sum(1), columns.sum(1)
    np.testing.assert_array_equal(rows.argmax(1) + height, SIZE[0] - rows[:, ::-1].argmax(1))  # without a gap
    np.testing.assert_array_equal(columns.argmax(1) + width, SIZE[1] - columns[:, ::-1].argmax(1))
    return top, left, height, width


def test_distribution_of_area_aspect_and_position(boxes):
    top, left, height, width = boxes
    # Sides are rounded to whole pixels, which the spread of the draws hides.
    area = scipy.stats.uniform(0.05, 0.15).cdf
    assert scipy.stats.kstest(height * width / np.prod(SIZE), area).pvalue > 1e-3
    log_aspect = scipy.stats.uniform(np.log(0.4), -2 * np.log(0.4)).cdf
    assert scipy.stats.kstest(np.log(height / width), log_aspect).pvalue > 1e-3
    noise = np.random.default_rng(0)
    for low, side, size in ((top, height, SIZE[0]), (left, width, SIZE[1])):
        assert low.min() == 0
        assert (low + side).max() == size
        position = (low + noise.uniform(size=len(low))) / (size - side + 1)  # 0 ... size - side, as a number in [0, 1)
        assert scipy.stats.kstest(position, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(top / (SIZE[0] - height), left / (SIZE[1] - width))[0, 1]) < 0.08


def test_nothing_is_erased_if_no_box_fits():
    square = jax.jit(lambda key: erased_box(key, (4, 400), (0.5, 0.6), 1.0))(jax.random.key(0))
    assert not np.asarray(square).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_the_same_in_all_frames(dtype):
    rng = np.random.default_rng(0)
    video = rng.integers(100, 200, (64, 3, 30, 40, 3)).astype(dtype)
    video[..., 1] //= 2
    run = jax.jit(erase)
    keys = clip_keys(jax.random.key(2), 64)
    out = np.asarray(run(keys, video, probability=0.6))
    assert out.dtype == dtype
    erased = (out != video).any(axis=(1, 4))  # noise may equal the pixel in one frame and channel, not in all
    some = erased.any(axis=(1, 2))
    assert abs(some.sum() - 0.6 * 64) < 3.5 * np.sqrt(64 * 0.6 * 0.4)
    for before, after, where in zip(video[some], out[some], erased[some], strict=True):
        inside = after[:, where]  # [T, pixels, 3]
        np.testing.assert_array_equal(inside, inside[:1] + 0 * inside)
        np.testing.assert_array_equal(after[:, ~where], before[:, ~where])
        assert 0 <= inside.min() < inside.max() <= 255
    values = np.concatenate([a[0, e].ravel() for a, e in zip(out[some], erased[some], strict=True)])
    counts = np.histogram(values, bins=16, range=(0, 256))[0]
    assert scipy.stats.chisquare(counts[4:]).pvalue > 1e-3  # uniform, outside the range of the clips' own values
    np.testing.assert_array_equal(out[:10], run(keys[:10], video[:10], probability=0.6))  # by key
    np.testing.assert_array_equal(run(keys, video, probability=0.0), video)


def test_erasing_comes_last_with_its_own_draws():
    video = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 2, 12, 12, 3), dtype=np.uint8))
    rest = {"colour_jitter_probability": 0.8, "grayscale_probability": 0.5}
    run = jax.jit(augment_pixels, static_argnames="config")
    without = np.asarray(run(jax.random.key(0), video, AugmentConfig(**rest)))
    actual = np.asarray(run(jax.random.key(0), video, AugmentConfig(**rest, erase_probability=1.0)))
    erased = (np.abs(actual - without) > 1e-3).any(axis=(1, 4))  # [B, H, W]
    assert ((erased.mean((1, 2)) > 0) & (erased.mean((1, 2)) < 0.5)).all()
    noise = np.broadcast_to(actual[:, :1], actual.shape)
    np.testing.assert_allclose(actual, np.where(erased[:, None, :, :, None], noise, without), atol=1e-3)
    alone = AugmentConfig(erase_probability=1.0)
    assert alone.enabled
    assert jax.eval_shape(lambda v: augment_pixels(jax.random.key(0), v, alone), video).dtype == jnp.uint8
