"""What section 3.4 promises, in float64: started from an image model, a video model computes what that model did."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from tests.helpers.small_models import random_params, random_video, small_config
from vivit_jax.convert import InitFrom, image_to_video, initialise, to_flat
from vivit_jax.convert.resize import resize_grid
from vivit_jax.models import ViViT
from vivit_jax.models.tokenizers import uniform_frame_indices

IMAGE = {"tokenizer": "uniform_frames", "tubelet_size": (1, 4, 4), "num_frames": 1, "dtype": "float64"}
CLIP = {"tokenizer": "tubelet", "tubelet_size": (3, 4, 4), "num_frames": 6}


def image_model(**fields):
    """(config, parameters) of an image ViT on a grid of 2 x 3."""
    config = small_config(**IMAGE, **fields)
    return config, random_params(config)


def run(config, params, video, **kwargs):
    """What the model returns."""
    with jax.enable_x64(True):
        call = jax.jit(
            functools.partial(ViViT(config).apply, **kwargs), compiler_options={"xla_backend_optimization_level": 0}
        )
        return jax.tree.map(np.asarray, call({"params": params}, video))


def run_frames(config, params, frames, **kwargs):
    """What an image model returns for each frame of [B, n, H, W, C]: [B, n, ...]."""
    found = run(config, params, frames.reshape(-1, 1, *frames.shape[2:]), **kwargs)
    return jax.tree.map(lambda leaf: leaf.reshape(*frames.shape[:2], *leaf.shape[1:]), found)


def start(params, config, **options):
    """(config, parameters) of a video model that starts from these, its classifier included."""
    with jax.enable_x64(True):
        made = initialise(params, config, InitFrom(head="keep", **options))
    return made.config, made.params


def embedded(video, embedding):
    """The frame [B, n_t, H, W, C] that an image model would have to see to embed tubelets of three frames alike."""
    video = video.reshape(video.shape[0], -1, 3, *video.shape[2:])
    return video[:, :, 1] if embedding == "central_frame" else video.mean(axis=2)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("classifier", ["token", "gap"])
@pytest.mark.parametrize("embedding", ["central_frame", "filter_inflation"])
def test_one_tubelet_in_time_is_the_image_model(embedding, classifier):
    """Eq. 9 sees the frame in the middle, eq. 8 the average of all; the rest is the image model, to the logits."""
    image, params = image_model(classifier=classifier, representation_size=6)
    config, made = start(params, dataclasses.replace(image, **{**CLIP, "num_frames": 3}), embedding=embedding)
    assert config.representation_size == 6
    video = random_video(config)
    assert_close(run(config, made, video), run_frames(image, params, embedded(video, embedding))[:, 0])


def test_a_clip_that_stands_still_is_its_image():
    """Positions are repeated over time, so that all times look alike; and attention over copies is attention over one.

    Without a class token, which would be one against the copies.
    """
    image, params = image_model(classifier="gap")
    config, made = start(params, dataclasses.replace(image, **CLIP))
    video = np.repeat(random_video(image), 6, axis=1)
    assert_close(run(config, made, video), run_frames(image, params, video[:, :1])[:, 0])


@pytest.mark.parametrize("tokens", ["central_frame", "filter_inflation", "uniform_frames"])
def test_model_2_encodes_each_frame_as_the_image_model(tokens):
    """Its class token included; the average-pool baseline averages the logits of the frames."""
    image, params = image_model(classifier="token")
    fields = {**CLIP, "tokenizer": "uniform_frames"} if tokens == "uniform_frames" else CLIP
    options = {} if tokens == "uniform_frames" else {"embedding": tokens}
    config = dataclasses.replace(image, **fields, attention="factorised_encoder", temporal_layers=2)
    video = random_video(config)
    frames = video[:, uniform_frame_indices(6, 2)] if tokens == "uniform_frames" else embedded(video, tokens)
    expected = run_frames(image, params, frames, features=True)["tokens"]
    config, made = start(params, config, **options)
    assert_close(run(config, made, video, features=True)["spatial_tokens"], expected)

    baseline, made = start(params, dataclasses.replace(config, temporal_layers=0), **options)
    assert_close(run(baseline, made, video), run_frames(image, params, frames).mean(axis=1))


@pytest.mark.parametrize("order", ["time_space", "space_time"])
def test_model_3_starts_as_the_image_model_and_learns(order):
    """A temporal attention that puts out zero; its gradient is not zero, as it is in the published code."""
    image, params = image_model(classifier="gap")
    config, made = start(
        params, dataclasses.replace(image, **CLIP, attention="factorised_self_attention", attention_order=order)
    )
    video = random_video(config)
    expected = run_frames(image, params, embedded(video, "central_frame"), features=True)["tokens"]
    found = run(config, made, video, features=True)["tokens"]
    assert_close(found.reshape(expected.shape), expected)

    def loss(params):
        logits = ViViT(config).apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.array([0, 1])).mean()

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(made)
    assert np.abs(gradient["encoder"]["layers"]["attention_time"]["out"]["kernel"]).max(axis=(1, 2, 3)).min() > 1e-4


def test_model_4_has_the_parameters_of_the_image_model():
    """Leaf by leaf; the heads are only told another axis."""
    image, params = image_model(classifier="gap")
    made = image_to_video(params, dataclasses.replace(image, **CLIP, attention="factorised_dot_product"), head="keep")
    for part in ("layers", "norm"):
        jax.tree.map(np.testing.assert_array_equal, made["encoder"][part], params["encoder"][part])
    positions = made["encoder"]["position_embedding"].reshape(2, 6, -1)
    np.testing.assert_array_equal(positions, np.stack(2 * [params["encoder"]["position_embedding"]]))


def test_between_tubelets_of_different_length_a_still_clip_stays_the_same():
    """From a trained Model 1 with tubelets of 2 frames to tubelets of 3, as Figure 8's rows do it."""
    source = small_config(dtype="float64")
    params = random_params(source)
    flat = to_flat(params, "huggingface", source)
    config, made = start(flat, dataclasses.replace(source, **CLIP), grid=source.grid, num_heads=source.num_heads)
    video = np.repeat(random_video(source)[:, :1], 6, axis=1)
    assert_close(run(config, made, video), run(source, params, video[:, :4]))


def test_positions_that_change_evenly_still_do_after_resizing():
    """Linear interpolation with the corners in place gives the values of a linear function, on any grid."""

    def field(*grid):
        axes = np.meshgrid(*(np.linspace(0, 1, size) for size in grid), indexing="ij")
        return np.stack([1 + 2 * axes[0] - 3 * axes[1] + axes[2], axes[2] - axes[0]], axis=-1)

    np.testing.assert_allclose(resize_grid(field(2, 3, 4), (5, 2, 7)), field(5, 2, 7), atol=1e-12)
