"""Golden outputs of Hugging Face, timm and the reference's initialisation (section 3.4)."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from tests.helpers.written_weights import needs_torch
from vivit_jax.convert import InitFrom, initialise, load_model, load_params, to_flat
from vivit_jax.models import ViViT, ViViTConfig


def relative(actual, expected):
    """Returns the largest difference, relative to the largest expected value."""
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


def apply(config, params, video, dtype="float64", **kwargs):
    with jax.enable_x64(dtype == "float64"):
        model = ViViT(ViViTConfig.from_dict({**config.to_dict(), "dtype": dtype}))
        return jax.jit(lambda p, v: model.apply({"params": p}, v, **kwargs))(params, np.asarray(video, dtype))


@pytest.mark.parametrize("file", ["", "model.safetensors", "model_v5names.safetensors"])
def test_hugging_face_vivit_logits_and_tokens(shared, file):
    folder = shared / "golden" / "hf" / "vivit_tiny"
    io = np.load(folder / "io.npz")
    config, params = load_model(folder / file)
    assert (config.num_frames, config.image_size, config.num_heads, config.num_classes) == (8, 32, 4, 10)
    video = io["pixel_values"].transpose(0, 1, 3, 4, 2)
    assert relative(apply(config, params, video), io["logits_f64"]) < 1e-6
    assert relative(apply(config, params, video, "float32"), io["logits"]) < 2e-6
    tokens = apply(config, params, video, features=True)["tokens"]
    assert relative(tokens, io["last_hidden_state_post_ln"]) < 2e-6  # stored in float32


def test_hugging_face_gradients(shared):
    folder = shared / "golden" / "hf" / "vivit_tiny"
    io = np.load(folder / "io.npz")
    config, params = load_model(folder)
    video = io["pixel_values"].transpose(0, 1, 3, 4, 2)

    def loss(params):
        logits = ViViT(config).apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, io["labels"]).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert relative(value, io["loss"]) < 2e-6
    gradients = {name.removeprefix("grad:"): io[name] for name in io.files if name.startswith("grad:")}
    expected = load_params(gradients, "huggingface", config=config)  # gradients have the shapes and names of weights
    scale = max(np.abs(g).max() for g in gradients.values())
    error = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), gradient, expected)
    assert max(jax.tree.leaves(error)) < 2e-6 * scale


@pytest.mark.parametrize("file", ["", "model.safetensors", "model_v5names.safetensors"])
def test_hugging_face_vit_logits(shared, file):
    folder = shared / "golden" / "hf" / "vit_cls_tiny"
    io = np.load(folder / "io.npz")
    config, params = load_model(folder / file)
    assert (config.activation, config.layer_norm_eps, config.num_frames) == ("gelu", 1e-12, 1)
    images = io["pixel_values"].transpose(0, 2, 3, 1)[:, None]
    assert relative(apply(config, params, images), io["logits"]) < 2e-6


@pytest.mark.parametrize("file", [pytest.param("model.pth", marks=needs_torch), "model.safetensors"])
def test_timm_logits_and_features(shared, file):
    folder = shared / "golden" / "hf" / "timm_vit_tiny"
    io = np.load(folder / "io.npz")
    with pytest.raises(ValueError, match="give num_heads"):
        load_model(folder / file)
    config, params = load_model(folder / file, num_heads=4)
    images = io["pixel_values"].transpose(0, 2, 3, 1)[:, None]
    assert relative(apply(config, params, images), io["logits"]) < 2e-6
    features = apply(config, params, images, features=True)
    assert relative(features["tokens"], io["forward_features"]) < 2e-6
    assert relative(features["pre_logits"], io["pre_logits"]) < 2e-6


INIT = {
    "init_m1_central_tile": {"attention": "spatiotemporal"},
    "init_m1_inflate_tile": {"attention": "spatiotemporal"},
    "init_m1_central_resize_tile_48px": {"attention": "spatiotemporal"},
    "init_m2_central_tile": {"attention": "factorised_encoder", "temporal_layers": 2},
    "init_m3_central_tile_temporal_not_loaded": {"attention": "factorised_self_attention"},
}
METHODS = {"central_frame_initializer": "central_frame", "average_frame_initializer": "filter_inflation"}


@pytest.mark.parametrize("name", INIT)
def test_initialisation_matches_the_reference(shared, name):
    """Parameters and logits of the reference after it initialised a video model from an image ViT."""
    golden = dict(np.load(shared / "golden" / "scenic" / f"{name}.npz"))
    image = dict(np.load(shared / "golden" / "scenic" / str(golden["ckpt_file"])))
    meta = json.loads(str(golden["meta_json"]))
    after = {k.removeprefix("target_after/"): v for k, v in golden.items() if k.startswith("target_after/")}
    config = ViViTConfig(
        hidden_size=32, num_layers=2, num_heads=4, mlp_dim=64, tubelet_size=meta["tubelet_thw"],
        num_frames=meta["frames"], image_size=meta["size"], num_classes=after["output_projection/bias"].shape[0],
        classifier=meta["classifier"], **INIT[name],
    )  # fmt: skip
    options = InitFrom(
        prefix="ckpt/", embedding=METHODS[meta["kernel_init_method"]], temporal_attention="random", pre_logits="drop"
    )
    converted = initialise(image, config, options)
    ours = to_flat(converted.params, "scenic", config)
    assert set(ours) == set(after)
    for leaf in set(after) - set(meta["untouched"]):
        assert relative(ours[leaf], after[leaf]) < 1e-6, leaf
    np.testing.assert_array_equal(ours.get("cls_SpatialTransformer", image["ckpt/cls"]), image["ckpt/cls"])
    # With the leaves that the reference does not initialise copied over, the logits are equal.
    whole = load_params({**ours, **{leaf: after[leaf] for leaf in meta["untouched"]}}, "scenic", config=config)
    video = np.load(shared / "golden" / "scenic" / str(golden["video_file"]))[str(golden["video_key"])]
    assert relative(apply(config, whole, video), golden["logits_after"]) < 2e-6
    # The same from parameters in memory.
    image_config, image_params = load_model(image, prefix="ckpt/")
    in_memory = initialise(image_params, config, dataclasses.replace(options, prefix=None)).params
    jax.tree.map(np.testing.assert_array_equal, in_memory, converted.params)
    assert image_config.representation_size == 32
