"""Cutmix and mixup: boxes and weights against NumPy, distributions, partners, one device against eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vivit_jax import sharding
from vivit_jax.augment import AugmentConfig, mix_clips, pixels

SIZE, PIXELS = (12, 20), 240
PARTNERS = np.array([1, 0, 3, 2, 5, 4, 7, 6])
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 1], np.float32)
UNPAIRED = [4, 7]  # with padding as partners
VIDEO = np.random.default_rng(0).uniform(-1, 1, (8, 2, *SIZE, 3)).astype(np.float32)
BOTH = {"mixup": 0.4, "cutmix": 2.0}


def mixtures(video, mask, draws, **fields):
    """`mix_clips` with many keys: videos [draws, B, T, H, W, 3], shares [draws, B]."""
    config = AugmentConfig(**fields)
    run = jax.jit(jax.vmap(lambda key: mix_clips(key, video, mask, config)))
    return [np.asarray(x) for x in run(jax.random.split(jax.random.key(4), draws))]


@pytest.fixture(scope="module", params=[False, True], ids=["per_batch", "per_example"])
def drawn(request):
    """1000 draws: (per example or not, mixtures, weights, whether it is cutmix, which pixels are the partner's)."""
    mixed, shares = mixtures(VIDEO, MASK, 1000, **BOTH, mix_per_example=request.param)
    own, other = mixed == VIDEO, mixed == VIDEO[PARTNERS]
    return request.param, mixed, shares, (own | other).all(axis=(2, 3, 4, 5)), ~own.all(axis=(2, 5))


def test_cutmix_pastes_a_box_and_weights_labels_by_area(drawn):
    _, _, shares, cut, pasted = drawn
    boxes = pasted[cut]
    np.testing.assert_array_equal(boxes, boxes.any(2)[:, :, None] & boxes.any(1)[:, None])
    np.testing.assert_allclose(shares[cut], 1 - boxes.mean((1, 2)), atol=1e-6)


def test_mixup_blends_by_its_weights(drawn):
    _, mixed, shares, cut, _ = drawn
    w = shares[..., None, None, None, None]
    expected = w * VIDEO + (1 - w) * VIDEO[PARTNERS]
    np.testing.assert_allclose(mixed[~cut], expected[~cut], atol=1e-6)


def test_distribution_of_lambda_and_of_the_choice(drawn):
    per_example, _, shares, cut, _ = drawn
    free = [0, 1, 2, 3] if per_example else [0]
    cut, shares = cut[:, free], shares[:, free]
    assert abs(cut.mean() - 0.5) < 4 * np.sqrt(0.25 / cut.size) + 0.005  # a mixture with lambda 1 looks like cutmix
    blended = shares[~cut]
    blended = blended[(blended > 1e-5) & (blended < 1 - 1e-5)]  # where float32 is precise enough
    assert scipy.stats.kstest(blended, scipy.stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    # The authors' cutmix in NumPy: lambda, a box around a uniform centre, the label's weight by its area in the frame.
    rng, size = np.random.default_rng(0), np.array(SIZE)
    half = (size * np.sqrt(1 - rng.beta(2.0, 2.0, (5000, 1)))).astype(int) // 2
    centre = rng.integers(0, size, (5000, 2))
    sides = np.minimum(centre + half, size) - np.maximum(centre - half, 0)
    assert scipy.stats.ks_2samp(np.rint(shares[cut] * PIXELS), PIXELS - sides.prod(1)).pvalue > 1e-3


def test_draws_are_per_batch_or_per_clip(drawn):
    per_example, mixed, shares, cut, _ = drawn
    alike = (shares[:, :4] == shares[:, :1]).all(1)
    assert not alike.any() if per_example else alike.all()
    if per_example:
        assert abs((cut[:, 0] != cut[:, 1]).mean() - 0.5) < 0.08  # partners have their own draws
        first, first_shares = mixtures(VIDEO[:4], MASK[:4], 1000, **BOTH, mix_per_example=True)  # by index in the batch
        np.testing.assert_allclose(first_shares, shares[:, :4], atol=1e-6)
        np.testing.assert_allclose(first, mixed[:, :4], atol=1e-5)


def test_clip_with_padding_partner_is_not_mixed(drawn):
    _, mixed, shares, *_ = drawn
    np.testing.assert_array_equal(shares[:, UNPAIRED], 1.0)
    np.testing.assert_array_equal(mixed[:, UNPAIRED], np.broadcast_to(VIDEO[UNPAIRED], mixed[:, UNPAIRED].shape))


def test_cutmix_box_matches_the_authors_code():
    """rand_bbox of clovaai/CutMix-PyTorch's train.py, in NumPy, for every centre."""
    height, width = SIZE
    run = jax.jit(jax.vmap(lambda key, share: pixels.cutmix_box(key, SIZE, share), in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(0), 4000)
    for share in (0.0, 0.3, 0.77, 1.0):
        actual = np.asarray(run(keys, jnp.float32(share)))
        cut_h, cut_w = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
        expected = np.zeros(SIZE)
        possible = set()
        for y in range(height):
            for x in range(width):
                inside = np.zeros(SIZE, bool)
                inside[max(y - cut_h // 2, 0) : y + cut_h // 2, max(x - cut_w // 2, 0) : x + cut_w // 2] = True
                expected += inside / (height * width)
                possible.add(inside.tobytes())
        assert {box.tobytes() for box in actual} <= possible
        np.testing.assert_allclose(actual.mean(0), expected, atol=5 * np.sqrt(0.25 / 4000))


def test_mixup_alone_is_the_published_one():
    mixed, shares = mix_clips(jax.random.key(3), VIDEO, MASK, AugmentConfig(mixup=0.3))
    np.testing.assert_array_equal(shares, pixels.mixup_weights(jax.random.key(3), MASK, 0.3))
    np.testing.assert_array_equal(mixed, pixels.mix(VIDEO, shares))


@pytest.mark.parametrize("per_example", [False, True])
def test_mixing_on_eight_devices_needs_no_communication(per_example):
    config = AugmentConfig(**BOTH, mix_per_example=per_example)
    batch = {"video": np.concatenate([VIDEO, -VIDEO]), "mask": np.concatenate([MASK, MASK])}
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            placed, key = sharding.place_batch(batch, mesh, 16), jax.random.key(7)
            mixed = jax.jit(
                lambda key, batch: mix_clips(key, batch["video"], batch["mask"], config),
                out_shardings=sharding.batch_sharding(mesh),
            )
            program = mixed.lower(key, placed).compile()
            results.append(jax.device_get(program(key, placed)))
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program.as_text()
    for one, eight in zip(*results, strict=True):
        np.testing.assert_allclose(one, eight, atol=1e-6)
