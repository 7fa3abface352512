"""Augmentation against Pillow, TensorFlow, colorsys and NumPy; random draws; one device against eight."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from vivit_jax import sharding
from vivit_jax.augment import AugmentConfig, augment_pixels, pixels, rand_augment
from vivit_jax.augment.pixels import clip_keys
from vivit_jax.config.experiment import ConfigError, Experiment, default_config
from vivit_jax.train_step import TrainState, make_train_step, normalise

ALL = AugmentConfig(
    colour_jitter_probability=0.8, grayscale_probability=0.5,
    rand_augment_layers=2, rand_augment_magnitude=15.0, rand_augment_ops="video",
    erase_probability=0.5, mixup=0.3,
)  # fmt: skip


def pillow(name, magnitude):
    """The operation in Pillow with the published argument (tensorflow/models, augment.py)."""
    factor = magnitude / 10 * 1.8 + 0.1
    return {
        "AutoContrast": ImageOps.autocontrast,
        "Equalize": ImageOps.equalize,
        "Invert": ImageOps.invert,
        "Posterize": lambda im: ImageOps.posterize(im, int(magnitude / 10 * 4)),
        "Solarize": lambda im: ImageOps.solarize(im, int(magnitude / 10 * 256)),
        "Color": lambda im: ImageEnhance.Color(im).enhance(factor),
        "Contrast": lambda im: ImageEnhance.Contrast(im).enhance(factor),
        "Brightness": lambda im: ImageEnhance.Brightness(im).enhance(factor),
        "Sharpness": lambda im: ImageEnhance.Sharpness(im).enhance(factor),
        "Identity": lambda im: im,
    }[name]


@pytest.mark.parametrize("magnitude", [3.0, 20.0])
def test_operations_match_pillow(clip, magnitude):
    operations = rand_augment.operations(magnitude)
    frames, height, width, _ = clip.shape
    for name in sorted(set(operations) - {"Cutout", "SolarizeAdd"}):
        apply = pillow(name, magnitude)
        if name == "Sharpness":  # the only one that uses neighbouring pixels: frame by frame
            expected = np.stack([np.asarray(apply(Image.fromarray(frame))) for frame in clip])
        else:  # the clip as one tall image: one histogram and mean
            tall = Image.fromarray(clip.reshape(frames * height, width, 3))
            expected = np.asarray(apply(tall)).reshape(clip.shape)
        got = np.asarray(operations[name](jnp.asarray(clip), jax.random.key(0)))
        difference = np.abs(got.astype(int) - expected)
        assert got.dtype == np.uint8
        # Pillow truncates float64, we divide integers: rounding may make a whole number one smaller in Pillow.
        tolerance = (1, 0.02) if name == "AutoContrast" else (0, 0)
        assert (difference.max(), difference.mean()) <= tolerance, name
        if name in ("AutoContrast", "Equalize", "Contrast", "Sharpness"):
            assert (got != clip).mean() > 0.1, f"{name} does nothing"


def test_solarize_add(synthetic):
    for magnitude, addition in ((3.0, 33), (15.0, 165), (20.0, 220), (100.0, 1100)):
        got = rand_augment.operations(magnitude)["SolarizeAdd"](jnp.asarray(synthetic), None)
        expected = np.where(synthetic < 128, np.minimum(synthetic.astype(int) + addition, 255), synthetic)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("magnitude", [0.0, 1000.0])
def test_operations_accept_any_magnitude(synthetic, magnitude):
    for name, operation in rand_augment.operations(magnitude).items():
        out = operation(jnp.asarray(synthetic), jax.random.key(1))
        assert (out.shape, out.dtype) == (synthetic.shape, jnp.uint8), name


def test_cutout_blackens_the_same_square_in_all_frames():
    size, half, draws = (12, 20), 3, 3000
    white = jnp.full((2, *size, 3), 255, jnp.uint8)
    out = np.asarray(
        jax.vmap(lambda key: rand_augment.cutout(white, key, half))(jax.random.split(jax.random.key(0), draws))
    )
    assert set(np.unique(out)) == {0, 255}
    np.testing.assert_array_equal(out, out[:, :1, :, :, :1] + 0 * out)  # the same in all frames and channels
    # A pixel at y is black if the centre c, uniform over the frame, has c - half <= y < c + half.
    share = [[sum(c - half <= p < c + half for c in range(n)) / n for p in range(n)] for n in size]
    expected = np.outer(*share)
    np.testing.assert_allclose((out[:, 0, :, :, 0] == 0).mean(0), expected, atol=5 * np.sqrt(expected.max() / draws))


def test_layers_are_drawn_uniformly_once_per_clip(synthetic):
    frame = synthetic[0, :20, :20]
    clip = jnp.asarray(np.stack([frame, frame]))
    # At this size Cutout blackens the whole frame, and there are enough pixels for Equalize.
    operations = rand_augment.operations(7.0)
    once = {name: np.asarray(f(clip, jax.random.key(0))) for name, f in operations.items()}
    assert len({out.tobytes() for out in once.values()}) == 12
    run = jax.jit(rand_augment.rand_augment, static_argnames=("layers", "magnitude"))
    keys = clip_keys(jax.random.key(3), 600)
    clips = jnp.broadcast_to(clip, (600, *clip.shape))
    one = np.asarray(run(keys, clips, layers=1, magnitude=7.0))
    np.testing.assert_array_equal(one[:, 0], one[:, 1])

    def names(outs, candidates):  # a compiled blend may round differently
        apart = [[np.abs(out.astype(int) - candidate).mean() for candidate in candidates] for out in outs]
        assert max(min(row) for row in apart) <= 0.5
        return np.argmin(apart, axis=1)

    counts = np.bincount(names(one, list(once.values())), minlength=12)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    pairs = [np.asarray(f(jnp.asarray(out), jax.random.key(0))) for out in once.values() for f in operations.values()]
    two = np.asarray(run(keys[:100], clips[:100], layers=2, magnitude=7.0))
    assert len(set(names(two, pairs))) > 40  # of 144, some of them equal
    with pytest.raises(TypeError, match="uint8 pixels, not float32"):
        rand_augment.rand_augment(keys, clips.astype(jnp.float32), layers=1, magnitude=7.0)


def test_colour_jitter_matches_tensorflow(clip):
    import tensorflow as tf

    frames = (clip / 255.0).astype(np.float32)
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    noise[0, :4] = noise[0, :4, :, :1]  # grey, pure primaries and black
    noise[0, 4:8] = rng.integers(0, 2, (4, 16, 3))
    for x in (frames, noise):
        for brightness, saturation, contrast, hue in ((0.1, 1.4, 0.6, 0.2), (-0.125, 0.6, 1.4, -0.2), (0, 1, 1, 0)):
            y = tf.image.adjust_brightness(x, brightness)
            y = tf.image.adjust_saturation(y, saturation)
            y = tf.image.adjust_contrast(y, contrast)
            y = np.clip(tf.image.adjust_hue(y, hue), 0, 1)
            got = pixels.jitter_colours(
                jnp.asarray(x), brightness=brightness, saturation=saturation, contrast=contrast, hue=hue
            )
            np.testing.assert_allclose(got, y, atol=2e-5)
        np.testing.assert_allclose(pixels.to_grey(x), np.tile(tf.image.rgb_to_grayscale(x), (1, 1, 1, 3)), atol=1e-6)


def test_hue_and_saturation_match_hsv():
    values = np.random.default_rng(1).uniform(size=(300, 3))
    for turns, factor in ((0.15, 0.7), (-0.2, 1.9), (0.75, 1.0)):
        expected = []
        for h, s, v in (colorsys.rgb_to_hsv(*p) for p in values):
            expected.append(colorsys.hsv_to_rgb((h + turns) % 1.0, min(1.0, s * factor), v))
        got = pixels.adjust_hue(pixels.adjust_saturation(jnp.asarray(values, jnp.float32), factor), turns)
        np.testing.assert_allclose(got, expected, atol=3e-6)


def test_colours_are_drawn_per_clip_from_key_and_index(synthetic):
    frame = synthetic[:1, :8, :8]
    video = jnp.asarray(np.broadcast_to(frame, (64, 3, *frame.shape[1:])))
    config = AugmentConfig(colour_jitter_probability=0.7, grayscale_probability=0.3)
    run = jax.jit(augment_pixels, static_argnames="config")
    out = np.asarray(run(jax.random.key(0), video, config=config))
    assert out.dtype == np.float32
    assert 0 <= out.min() < out.max() <= 255
    np.testing.assert_allclose(out, out[:, :1] + 0 * out, atol=1e-4)  # same in all frames
    np.testing.assert_allclose(run(jax.random.key(0), video[:5], config=config), out[:5], atol=1e-4)
    assert not np.allclose(run(jax.random.key(1), video, config=config), out)
    grey = np.ptp(out, axis=-1).max(axis=(1, 2, 3)) < 1e-3
    untouched = (out == np.asarray(video)).all(axis=(1, 2, 3, 4))  # exactly
    assert 0.3 * 64 - 11 <= grey.sum() <= 0.3 * 64 + 11  # within three standard deviations
    assert 0.21 * 64 - 10 <= untouched.sum() <= 0.21 * 64 + 10
    jittered = out[~grey & ~untouched, 0]
    assert len(np.unique(jittered.reshape(len(jittered), -1).round(2), axis=0)) == len(jittered)  # all different


def test_only_enabled_operations_are_applied(synthetic):
    video = jnp.asarray(np.stack([synthetic] * 4))
    assert augment_pixels(jax.random.key(0), video, AugmentConfig(mixup=0.3)) is video
    grey = augment_pixels(jax.random.key(0), video, AugmentConfig(grayscale_probability=1.0))
    np.testing.assert_allclose(grey[..., 1], np.asarray(video, np.float32) @ np.array(pixels.GREY), atol=1e-3)
    layers_alone = jax.eval_shape(
        lambda v: augment_pixels(jax.random.key(0), v, AugmentConfig(rand_augment_layers=1)), video
    )
    assert layers_alone.dtype == jnp.uint8


def test_mixup_weights_follow_the_beta_distribution():
    mask = jnp.array([1, 1, 1, 0, 1])
    keys = jax.random.split(jax.random.key(0), 2000)
    weights = np.asarray(jax.vmap(lambda key: pixels.mixup_weights(key, mask, 0.3))(keys))
    np.testing.assert_array_equal(weights[:, 2], 1.0)  # its partner is padding
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])  # one draw for the batch
    assert scipy.stats.kstest(weights[:, 0], scipy.stats.beta(0.3, 0.3).cdf).pvalue > 1e-3
    values = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    partner = values[[1, 0, 3, 2, 4]]
    w = weights[0][:, None, None]
    np.testing.assert_allclose(pixels.mix(values, weights[0]), w * values + (1 - w) * partner, atol=1e-6)


def recorded_step(batch, config, label_smoothing=0.0, step=0):
    """One step of two linear heads without jit: (input video of the model, kernels, metrics)."""
    seen, rng = [], np.random.default_rng(5)
    params = {h: jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for h in batch["label"]}

    def model(variables, video, train, rngs):
        seen.append(np.asarray(video))
        return {h: video.mean(axis=(1, 2, 3)) @ kernel for h, kernel in variables["params"].items()}

    optimizer = optax.sgd(0.0)
    state = TrainState.create(params, optimizer).replace(step=jnp.asarray(step, jnp.int32))
    make = make_train_step(model, optimizer, lambda s: 0.1, seed=2, label_smoothing=label_smoothing, augment=config)
    _, metrics = make(state, batch)
    return seen[0], {h: np.asarray(k) for h, k in params.items()}, {k: float(v) for k, v in metrics.items()}


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (size, 2, 6, 6, 3), dtype=np.uint8)),
        "label": {h: jnp.asarray(rng.integers(0, 4, size)) for h in ("verb", "noun")},
        "mask": jnp.ones(size),
    }


def test_mixup_of_frames_targets_and_accuracy_in_the_step():
    batch = batch_of(8) | {"mask": jnp.array([1, 1, 1, 1, 1, 1, 1, 0.0])}
    partners = np.array([1, 0, 3, 2, 5, 4, 7, 6])
    shares = set()
    for step in range(2):
        video, kernels, metrics = recorded_step(batch, AugmentConfig(mixup=1.0), label_smoothing=0.2, step=step)
        plain = np.asarray(normalise(batch["video"]))
        apart = plain[0] - plain[1]
        share = np.sum((video[0] - plain[1]) * apart) / np.sum(apart**2)  # from the first two clips
        weight = np.where(np.asarray(batch["mask"])[partners] > 0, share, 1.0)
        w = weight[:, None, None, None, None]
        np.testing.assert_allclose(video, w * plain + (1 - w) * plain[partners], atol=1e-4)
        assert 0 < share < 1
        shares.add(round(float(share), 4))
        for head, kernel in kernels.items():
            logits = video.mean(axis=(1, 2, 3)) @ kernel
            labels = np.asarray(batch["label"][head])
            targets = np.eye(4)[labels] * 0.8 + 0.2 / 4
            targets = weight[:, None] * targets + (1 - weight[:, None]) * targets[partners]
            losses = -(targets * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)
            assert metrics[f"loss/{head}"] == pytest.approx(losses[:7].mean(), rel=1e-4)
            larger = np.where(weight > 0.5, labels, labels[partners])
            assert metrics[f"accuracy/{head}"] == pytest.approx((logits.argmax(-1) == larger)[:7].mean())
    assert len(shares) == 2  # new draws in each step


def test_disabled_augmentation_adds_nothing_to_the_step():
    batch = batch_of(4)

    def program(config):
        optimizer = optax.sgd(0.1)
        model = lambda v, x, train, rngs: {h: x.mean(axis=(1, 2, 3)) @ k for h, k in v["params"].items()}  # noqa: E731
        state = TrainState.create({h: jnp.ones((3, 4)) for h in batch["label"]}, optimizer)
        return str(jax.make_jaxpr(make_train_step(model, optimizer, lambda s: 0.1, augment=config))(state, batch))

    off = AugmentConfig(rand_augment_magnitude=15.0)
    assert not off.enabled
    assert program(off) == program(None)
    assert program(None).count("random_fold_in") == 1  # the step's own key, for dropout
    assert "random_split" not in program(None)


@pytest.mark.slow
def test_augmented_step_on_eight_devices_matches_one():
    batch = batch_of(16)
    batch = {"video": np.asarray(batch["video"]), "label": {"label": np.asarray(batch["label"]["verb"])}} | {
        "mask": np.ones(16, np.float32)
    }
    optimizer = optax.sgd(0.1)
    model = lambda v, x, train, rngs: x.reshape(x.shape[0], -1) @ v["params"]  # noqa: E731
    # The gradient of the kernel depends on every pixel of every clip: equal kernels mean equal pixels.
    kernel = np.random.default_rng(0).normal(size=(2 * 6 * 6 * 3, 4)).astype(np.float32)
    results, programs = [], []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            state = jax.device_put(TrainState.create(kernel, optimizer), sharding.replicated(mesh))
            placed = sharding.place_batch(batch, mesh, 16)
            make = make_train_step(model, optimizer, lambda s: 0.1, augment=ALL)
            step = jax.jit(make).lower(state, placed).compile()
            programs.append(step.as_text())
            state, metrics = step(state, placed)
            results.append((np.asarray(state.params), float(metrics["loss"])))
    np.testing.assert_allclose(results[0][0] - kernel, results[1][0] - kernel, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)
    assert "all-reduce" in programs[1]  # of the gradients
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in programs[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour_jitter_probability": 1.5}, r"augment\.colour_jitter_probability=1\.5 must lie in \[0, 1\]"),
        ({"grayscale_probability": float("nan")}, r"augment\.grayscale_probability=nan must lie in \[0, 1\]"),
        ({"rand_augment_layers": -1}, r"augment\.rand_augment_layers=-1 must lie in \[0, inf\)"),
        ({"rand_augment_magnitude": float("inf")}, r"augment\.rand_augment_magnitude=inf must lie in \[0, inf\)"),
        ({"mixup": -0.1}, r"augment\.mixup=-0\.1 must lie in \[0, inf\)"),
        ({"cutmix": float("inf")}, r"augment\.cutmix=inf must lie in \[0, inf\)"),
        ({"rand_augment_ops": "all"}, r"augment\.rand_augment_ops='all' .* choose one of paper, video"),
        ({"erase_probability": -1.0}, r"augment\.erase_probability=-1\.0 must lie in \[0, 1\]"),
    ],
)
def test_values_out_of_range_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)
    config = default_config()
    config.augment.update(fields)
    with pytest.raises(ConfigError, match=message):
        Experiment.from_config(config)


def test_config_section_round_trip():
    config = default_config()
    config.augment.update(mixup=0.1, erase_probability=0.2)
    experiment = Experiment.from_config(config)
    assert experiment.augment == AugmentConfig(mixup=0.1, erase_probability=0.2)
    assert Experiment.from_config(experiment.to_dict()) == experiment
