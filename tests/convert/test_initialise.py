"""Initialisation of any model from any other: every leaf accounted for, values against independent arithmetic."""

import dataclasses
import itertools
import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.helpers.small_models import MODELS, random_params, small_config
from vivit_jax.convert import ConversionError, InitFrom, image_to_video, initialise, model_for, save_params, to_flat
from vivit_jax.convert.image_to_video import adapt, central_frame, filter_inflation, random_leaves, resize_grid
from vivit_jax.models import ViViT, abstract_params

IMAGE = {"tokenizer": "uniform_frames", "tubelet_size": (1, 4, 4), "num_frames": 1}
SOURCES = {
    **MODELS,
    "image": IMAGE,
    "gap": {**MODELS["model2"], "classifier": "gap", "representation_size": 6},
}
# Longer and larger than the sources: grid 4 x 3 x 2 instead of 2 x 2 x 3.
LARGER = {"num_frames": 12, "tubelet_size": (3, 4, 4), "image_size": (12, 8)}


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def adapt_small(source, target, options=None, **fields):
    """Returns (source config, its parameters, target config, its parameters, the report)."""
    source, target = small_config(**{**SOURCES[source]}), small_config(**{**SOURCES[target], **LARGER, **fields})
    params = random_params(source, dtype=np.float32)
    filled, report = adapt(params, source, target, options or InitFrom(pre_logits="drop"), seed=3)
    return source, flat(params), target, flat(filled), report


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SOURCES, [*MODELS, "gap"])))
def test_every_model_initialises_from_every_other(source, target, monkeypatch):
    def marked(config, names, seed):  # instead of compiling the initialisers
        leaves = flat(abstract_params(config))
        return {name: np.full(leaves[name].shape, 7.0, np.float32) for name in names}

    monkeypatch.setattr(image_to_video, "random_leaves", marked)
    _, params, target_config, filled, report = adapt_small(source, target, num_classes={"verb": 2, "noun": 3})
    shapes = {name: leaf.shape for name, leaf in flat(abstract_params(target_config)).items()}
    assert {name: leaf.shape for name, leaf in filled.items()} == shapes
    names = [entry.name for entry in report.entries if entry.outcome != "dropped"]
    assert sorted(names) == sorted(shapes)  # each leaf of the model once
    loaded = " ".join(entry.how for entry in report.entries if entry.outcome in ("loaded", "resized"))
    dropped = {entry.name for entry in report.entries if entry.outcome == "dropped"}
    zeroed = {name for name in params if "_space/out/" in name}  # copies of these start at zero
    assert all((name in loaded) != (name in dropped) or name in zeroed for name in params)
    fresh = {e.name for e in report.entries if e.outcome == "initialised" and "attention_time/out" not in e.name}
    assert fresh == {name for name, leaf in filled.items() if (leaf == 7).all()}
    joint = {"encoder", "spatial_encoder"}
    for encoder, source_encoder in itertools.product(joint, joint):  # the MLPs, which all models have
        if f"{encoder}/norm/scale" in filled and f"{source_encoder}/norm/scale" in params:
            part = "layers/mlp/dense_in/kernel"
            np.testing.assert_array_equal(filled[f"{encoder}/{part}"], params[f"{source_encoder}/{part}"])


def linear(positions, axis, n):
    """Linear interpolation along one axis with fixed ends, by NumPy."""
    m = positions.shape[axis]
    positions_new = np.linspace(0, m - 1, n)
    if n == 1:
        return positions.mean(axis, keepdims=True)
    return np.apply_along_axis(lambda line: np.interp(positions_new, np.arange(m), line), axis, positions)


@pytest.mark.parametrize("grid", [(4, 3, 2), (1, 5, 3), (2, 1, 7)])
def test_resize_grid_interpolates_linearly(grid):
    positions = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    expected = positions
    for axis, n in enumerate(grid):
        expected = linear(expected, axis, n)
    np.testing.assert_allclose(resize_grid(positions, grid), expected, rtol=0, atol=1e-12)
    assert resize_grid(positions, (2, 3, 5)) is positions


def test_no_position_becomes_zero():
    """`scipy.ndimage.zoom` puts the last place outside the grid for some of these sizes, as 28 to 14 and 16 to 30."""
    for old in range(1, 41):
        for new in range(2, 41):
            np.testing.assert_allclose(resize_grid(np.ones((old, 1)), (new,)), 1, rtol=0, atol=1e-12)


def test_positions_from_videos_and_images():
    config, params, target_config, filled, _ = adapt_small("model1", "model1")
    old = params["encoder/position_embedding"]
    new = filled["encoder/position_embedding"]
    np.testing.assert_array_equal(new[0], old[0])  # the class token's
    expected = old[1:].reshape(*config.grid, 8).astype(np.float64)
    for axis, n in enumerate(target_config.grid):
        expected = linear(expected, axis, n)
    np.testing.assert_allclose(new[1:], expected.reshape(-1, 8), atol=1e-6)

    config, params, target_config, filled, _ = adapt_small("image", "model4")
    expected = params["encoder/position_embedding"][1:].reshape(1, *config.grid[1:], 8)
    for axis, n in enumerate(target_config.grid[1:]):
        expected = linear(expected, axis + 1, n)
    expected = np.repeat(expected, target_config.grid[0], axis=0)  # the same in each frame
    np.testing.assert_allclose(filled["encoder/position_embedding"], expected.reshape(-1, 8), atol=1e-6)

    config, params, target_config, filled, _ = adapt_small("model2", "model2")
    time = params["temporal_encoder/position_embedding"]
    np.testing.assert_allclose(filled["temporal_encoder/position_embedding"][1:], linear(time[1:], 0, 4), atol=1e-6)
    np.testing.assert_array_equal(filled["temporal_encoder/position_embedding"][0], time[0])


def test_tubelet_embeddings_of_other_lengths():
    kernel = np.random.default_rng(0).normal(size=(2, 4, 4, 3, 8))
    for t in (1, 2, 3, 4, 8):  # the response to a static clip stays the same
        np.testing.assert_allclose(filter_inflation(kernel, t).sum(0), kernel.sum(0), atol=1e-12)
    np.testing.assert_allclose(filter_inflation(kernel, 4), np.repeat(kernel, 2, axis=0) / 2, atol=1e-12)
    np.testing.assert_allclose(filter_inflation(kernel, 3)[1], kernel.sum(0) / 3, atol=1e-12)
    np.testing.assert_allclose(filter_inflation(kernel[0], 5), np.stack([kernel[0] / 5] * 5), atol=1e-12)  # eq. 8
    for t in (1, 2, 3, 4):  # eq. 9: frame t // 2
        central = central_frame(kernel[0], t)
        np.testing.assert_array_equal(central[t // 2], kernel[0])
        assert np.count_nonzero(central.any(axis=(1, 2, 3, 4))) == 1
    with pytest.raises(ValueError, match="would drop 1 of the 2 frames"):
        central_frame(kernel, 1)


def test_temporal_attention_of_model_3():
    for choice in ("zero", "copy", "random"):
        _, params, target_config, filled, _ = adapt_small("image", "model3", InitFrom(temporal_attention=choice))
        time, space = "encoder/layers/attention_time", "encoder/layers/attention_space"
        np.testing.assert_array_equal(filled[f"{space}/query/kernel"], params["encoder/layers/attention/query/kernel"])
        same = np.array_equal(filled[f"{time}/query/kernel"], filled[f"{space}/query/kernel"])
        assert same == (choice != "random")
        assert filled[f"{time}/out/kernel"].any() == (choice != "zero")
        if choice == "random":
            fresh = random_leaves(target_config, [f"{time}/out/kernel"], seed=3)
            np.testing.assert_array_equal(filled[f"{time}/out/kernel"], fresh[f"{time}/out/kernel"])


def test_head_is_kept_or_reinitialised():
    _, params, _, filled, _ = adapt_small("model1", "model2", InitFrom(head="keep"))
    np.testing.assert_array_equal(filled["head/kernel"], params["head/kernel"])
    _, params, _, filled, report = adapt_small("model1", "model2")
    assert not filled["head/kernel"].any()
    assert "dropped     head/kernel" in str(report)
    with pytest.raises(ConversionError, match=r"classify 5, the model 7; head='reinit'"):
        adapt_small("model1", "model2", InitFrom(head="keep"), num_classes=7)


def test_all_differences_are_listed():
    with pytest.raises(ConversionError) as error:
        adapt_small(
            "image", "model2", num_layers=3, mlp_dim=16, tubelet_size=(3, 2, 4), layer_norm_eps=1e-5, num_heads=4
        )
    for line in (
        "num_layers is 2 in the weights, 3 in the model",
        "mlp_dim is 12 in the weights, 16",
        "num_heads is 2 in the weights, 4",
        "layer_norm_eps is 1e-06 in the weights, 1e-05",
        "patches are (4, 4) pixels in the weights, (2, 4)",
    ):
        assert line in str(error.value)
    assert len(error.value.problems) == 5
    with pytest.raises(ConversionError, match=r"temporal_layers is 2 in the weights, 4 .* temporal_encoder='random'"):
        adapt_small("model2", "model2", temporal_layers=4)
    with pytest.raises(ConversionError, match="cannot shorten tubelets from 2 to 1 frames"):
        adapt_small("model1", "model1", InitFrom(embedding="central_frame"), tubelet_size=(1, 4, 4))
    filled = adapt_small("model2", "model2", InitFrom(temporal_encoder="random"), temporal_layers=4)[3]
    assert filled["temporal_encoder/layers/norm_mlp/scale"].shape == (4, 8)


def test_model_inherits_fields_of_the_weights(tmp_path):
    source = small_config(
        **IMAGE, activation="gelu", layer_norm_eps=1e-3, qkv_bias=False, representation_size=6, attention_logit_cap=50.0
    )
    params = random_params(source, dtype=np.float16)  # half precision is widened, and reported
    save_params(params, tmp_path / "run", "orbax", source)
    target_config = small_config(**MODELS["model3"], **LARGER)
    result = initialise(tmp_path / "run", target_config)
    inherited = {"activation": "gelu", "layer_norm_eps": 1e-3, "qkv_bias": False, "attention_logit_cap": 50.0}
    assert result.config == dataclasses.replace(target_config, **inherited, representation_size=6)
    assert result.config == model_for(tmp_path / "run", target_config, InitFrom())
    assert "float16" in str(result.report)
    assert "activation = gelu (was gelu_tanh)" in result.report.summary()
    assert initialise(tmp_path / "run", target_config, InitFrom(pre_logits="drop")).config.representation_size is None
    video = np.zeros((1, *target_config.video_shape), np.float32)
    assert ViViT(result.config).apply({"params": result.params}, video).shape == (1, 5)


def test_invalid_values_are_refused():
    config = small_config()
    weights = to_flat(random_params(config, dtype=np.float32), "scenic", config)
    weights["embedding/kernel"][0, 0, 0, 0, 0] = np.inf
    weights["cls"] = np.arange(8).reshape(1, 1, 8)
    with pytest.raises(ConversionError) as error:
        initialise(weights, small_config(**MODELS["model3"]))
    assert "cls (1, 1, 8): holds int64, not floating-point numbers" in error.value.problems
    assert "tokenizer/kernel: holds NaN or infinity (from embedding/kernel)" in error.value.problems
    weights = {name: leaf.astype(np.float64) * 1e300 for name, leaf in weights.items() if name != "cls"}
    with pytest.raises(ConversionError, match="holds numbers beyond float32"):
        initialise({**weights, "cls": np.zeros((1, 1, 8))}, config)


def test_initialisation_is_deterministic():
    first, second = (jax.tree.leaves(adapt_small("image", "model2")[3]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_pixel_normalisation_is_folded_in(tmp_path):
    """An image model trained on (x - mean) / std computes the same on pixels in [-1, 1]."""
    source = small_config(**IMAGE, image_size=8, representation_size=None)
    params = random_params(source, dtype=np.float32)
    save_params(params, tmp_path / "vit", "huggingface", source)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    processor = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    pixels = np.random.default_rng(0).uniform(0, 1, (2, *source.video_shape)).astype(np.float32)
    expected = ViViT(source).apply({"params": params}, (pixels - np.array(mean)) / np.array(std))
    result = initialise(tmp_path / "vit", source, InitFrom(head="keep"))
    np.testing.assert_allclose(ViViT(source).apply({"params": result.params}, pixels * 2 - 1), expected, atol=2e-5)
    assert "folded in" in str(result.report)
    half = InitFrom(head="keep", pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    again = initialise(tmp_path / "vit", source, half).params  # the option overrides the file
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ConversionError, match="a number for each of 3 channels"):
        initialise(tmp_path / "vit", source, InitFrom(pixel_mean=(0.4,), pixel_std=(0.5,)))
