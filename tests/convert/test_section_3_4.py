"""Section 3.4 in float64: a video model initialised from an image model computes what that model does."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from tests.helpers.small_models import random_params, random_video, small_config
from vivit_jax.convert import InitFrom, initialise, to_flat
from vivit_jax.convert.image_to_video import resize_grid
from vivit_jax.models import ViViT
from vivit_jax.models.tokenizers import uniform_frame_indices

IMAGE = {"tokenizer": "uniform_frames", "tubelet_size": (1, 4, 4), "num_frames": 1, "dtype": "float64"}
CLIP = {"tokenizer": "tubelet", "tubelet_size": (3, 4, 4), "num_frames": 6}


def image_model(**fields):
    """Returns (config, parameters) of an image ViT on a grid of 2 x 3."""
    config = small_config(**IMAGE, **fields)
    return config, random_params(config)


def run(config, params, video, **kwargs):
    """Returns the output of a model."""
    with jax.enable_x64(True):
        call = jax.jit(
            functools.partial(ViViT(config).apply, **kwargs), compiler_options={"xla_backend_optimization_level": 0}
        )
        return jax.tree.map(np.asarray, call({"params": params}, video))


def run_frames(config, params, frames, **kwargs):
    """Returns the output of an image model for each frame of [B, n, H, W, C]: [B, n, ...]."""
    actual = run(config, params, frames.reshape(-1, 1, *frames.shape[2:]), **kwargs)
    return jax.tree.map(lambda leaf: leaf.reshape(*frames.shape[:2], *leaf.shape[1:]), actual)


def initialise_from(params, config, **options):
    """Returns (config, parameters) of a video model initialised from these, classifier included."""
    with jax.enable_x64(True):
        converted = initialise(params, config, InitFrom(head="keep", **options))
    return converted.config, converted.params


def embedded(video, embedding):
    """Returns the frames [B, n_t, H, W, C] whose image embedding equals that of tubelets of three frames."""
    video = video.reshape(video.shape[0], -1, 3, *video.shape[2:])
    return video[:, :, 1] if embedding == "central_frame" else video.mean(axis=2)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize("embedding", ["central_frame", "filter_inflation"])
def test_single_tubelet_equals_the_image_model(embedding, classifier):
    """Eq. 9 sees the frame in the middle, eq. 8 the average of all; the rest is the image model, to the logits."""
    image, params = image_model(classifier=classifier, representation_size=6)
    config, converted = initialise_from(
        params, dataclasses.replace(image, **{**CLIP, "num_frames": 3}), embedding=embedding
    )
    assert config.representation_size == 6
    video = random_video(config)
    assert_close(run(config, converted, video), run_frames(image, params, embedded(video, embedding))[:, 0])


def test_static_clip_equals_its_image():
    """Positions are repeated over time, so all times are equal, and attention over copies is attention over one.

    Without a class token, which would be one against the copies.
    """
    image, params = image_model(classifier="gap")
    config, converted = initialise_from(params, dataclasses.replace(image, **CLIP))
    video = np.repeat(random_video(image), 6, axis=1)
    assert_close(run(config, converted, video), run_frames(image, params, video[:, :1])[:, 0])


@pytest.mark.parametrize("tokens", ["central_frame", "filter_inflation", "uniform_frames"])
def test_model_2_encodes_frames_as_the_image_model(tokens):
    """Its class token included; the average-pool baseline averages the logits of the frames."""
    image, params = image_model(classifier="token")
    fields = {**CLIP, "tokenizer": "uniform_frames"} if tokens == "uniform_frames" else CLIP
    options = {} if tokens == "uniform_frames" else {"embedding": tokens}
    config = dataclasses.replace(image, **fields, attention="factorised_encoder", temporal_layers=2)
    video = random_video(config)
    frames = video[:, uniform_frame_indices(6, 2)] if tokens == "uniform_frames" else embedded(video, tokens)
    expected = run_frames(image, params, frames, features=True)["tokens"]
    config, converted = initialise_from(params, config, **options)
    assert_close(run(config, converted, video, features=True)["spatial_tokens"], expected)

    baseline, converted = initialise_from(params, dataclasses.replace(config, temporal_layers=0), **options)
    assert_close(run(baseline, converted, video), run_frames(image, params, frames).mean(axis=1))


@pytest.mark.parametrize("order", ["time_space", "space_time"])
def test_model_3_starts_as_the_image_model_and_learns(order):
    """The temporal attention outputs zero, but its gradient is not zero, unlike in the published code."""
    image, params = image_model(classifier="gap")
    config, converted = initialise_from(
        params, dataclasses.replace(image, **CLIP, attention="factorised_self_attention", attention_order=order)
    )
    video = random_video(config)
    expected = run_frames(image, params, embedded(video, "central_frame"), features=True)["tokens"]
    actual = run(config, converted, video, features=True)["tokens"]
    assert_close(actual.reshape(expected.shape), expected)

    def loss(params):
        logits = ViViT(config).apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.array([0, 1])).mean()

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(converted)
    assert np.abs(gradient["encoder"]["layers"]["attention_time"]["out"]["kernel"]).max(axis=(1, 2, 3)).min() > 1e-4


def test_model_4_copies_the_image_model():
    """Leaf by leaf: its heads only attend over other axes."""
    image, params = image_model(classifier="gap")
    config = dataclasses.replace(image, **CLIP, attention="factorised_dot_product")
    converted = initialise(params, config, InitFrom(head="keep", pre_logits="drop")).params
    for part in ("layers", "norm"):
        jax.tree.map(np.testing.assert_array_equal, converted["encoder"][part], params["encoder"][part])
    positions = converted["encoder"]["position_embedding"].reshape(2, 6, -1)
    np.testing.assert_array_equal(positions, np.stack(2 * [params["encoder"]["position_embedding"]]))


@pytest.mark.parametrize("classifier", ["token", "gap"])
def test_temporal_position_std_tells_repeated_positions_apart(classifier):
    """One vector for each time, the same for all places; another seed has others; the class token's stays."""
    image, params = image_model(classifier=classifier)
    config, first = dataclasses.replace(image, **CLIP, temporal_position_std=2.0), int(classifier == "token")
    added = []
    for seed in (0, 1):
        with jax.enable_x64(True):
            result = initialise(params, config, InitFrom(head="keep", pre_logits="drop"), seed=seed)
        positions, source = (tree["encoder"]["position_embedding"] for tree in (result.params, params))
        np.testing.assert_array_equal(positions[:first], source[:first])
        added.append(positions[first:].reshape(2, 6, -1) - source[first:])
        np.testing.assert_allclose(added[-1], np.broadcast_to(added[-1][:, :1], added[-1].shape), atol=1e-6)
        entry = next(entry for entry in result.report.entries if entry.name == "encoder/position_embedding")
        assert "repeated 2 times, plus a random vector for each time (standard deviation 2)" in entry.how
    vectors = np.stack(added)[:, :, 0]  # [seeds, times, d]
    assert vectors.std() == pytest.approx(2.0, rel=0.4)
    assert np.abs(np.diff(vectors, axis=0)).min() > 0
    # A video model's positions differ over time already.
    _, again = initialise_from(result.params, config, grid=config.grid)
    again = again["encoder"]["position_embedding"]
    np.testing.assert_array_equal(again, positions)


def test_static_clip_keeps_logits_across_tubelet_lengths():
    """From a trained Model 1 with tubelets of 2 frames to tubelets of 3, as Figure 8's rows do it."""
    source = small_config(dtype="float64")
    params = random_params(source)
    flat = to_flat(params, "huggingface", source)
    config, converted = initialise_from(
        flat, dataclasses.replace(source, **CLIP), grid=source.grid, num_heads=source.num_heads
    )
    video = np.repeat(random_video(source)[:, :1], 6, axis=1)
    assert_close(run(config, converted, video), run(source, params, video[:, :4]))


def test_resizing_keeps_linear_positions():
    """Linear interpolation with the corners in place gives the values of a linear function, on any grid."""

    def field(*grid):
        axes = np.meshgrid(*(np.linspace(0, 1, size) for size in grid), indexing="ij")
        return np.stack([1 + 2 * axes[0] - 3 * axes[1] + axes[2], axes[2] - axes[0]], axis=-1)

    np.testing.assert_allclose(resize_grid(field(2, 3, 4), (5, 2, 7)), field(5, 2, 7), atol=1e-12)
