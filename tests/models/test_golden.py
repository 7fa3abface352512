"""Parity with the reference: logits, pre-logits, losses, gradient norm of each parameter."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax.convert import load_params, to_flat
from vivit_jax.models import ViViT, ViViTConfig

FIXTURES = {
    "m1_spacetime": {"attention": "spatiotemporal"},
    "m2_factorized_encoder": {"attention": "factorised_encoder", "temporal_layers": 2},
    "m2_avgpool_baseline": {"attention": "factorised_encoder", "temporal_layers": 0},
    "m3_factorized_self_attention": {"attention": "factorised_self_attention"},
    "m4_factorized_dot_product": {"attention": "factorised_dot_product"},
}


def read(shared, name, **overrides):
    """(config, converted parameters, video, arrays) of one of the FIXTURES."""
    golden = dict(np.load(shared / "golden" / "scenic" / f"{name}_t2x16x16.npz"))
    meta = json.loads(str(golden["meta_json"]))
    config = ViViTConfig(
        hidden_size=meta["hidden"],
        num_layers=meta["layers"],
        num_heads=meta["heads"],
        mlp_dim=meta["mlp"],
        tubelet_size=meta["tubelet_thw"],
        num_frames=meta["frames"],
        image_size=meta["size"],
        num_classes=meta["ncls"],
        classifier=meta["classifier"],
        **{**FIXTURES[name], **overrides},
    )
    params = load_params(golden, config=config, prefix="params/")
    video = np.load(shared / "golden" / "scenic" / str(golden["video_file"]))[str(golden["video_key"])]
    return config, params, video, golden


def relative(actual, expected):
    """The largest difference, relative to the largest expected value."""
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *((name, {}) for name in FIXTURES),
        ("m2_factorized_encoder", {"scan_layers": True, "remat": "dots", "attention_backend": "tiled"}),
    ],
)
def test_float32_matches_the_reference(shared, name, variant):
    config, params, video, golden = read(shared, name, **variant)
    model = ViViT(config)

    def loss(params, smoothing):
        logits = model.apply({"params": params}, video)
        targets = optax.smooth_labels(jnp.asarray(golden["labels"]), smoothing)
        features = model.apply({"params": params}, video, features=True)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, features)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (smoothed, (logits, features)), gradient = step(params, 0.2)
    assert relative(features["pre_logits"], golden["prelogits"]) < 2e-6
    assert logits.dtype == jnp.float32
    assert relative(logits, golden["logits"]) < 2e-6
    assert relative(smoothed, golden["loss_ls0.2"]) < 2e-6
    assert relative(step(params, 0.0)[0][0], golden["loss_ls0"]) < 2e-6
    norms = {leaf: np.linalg.norm(g) for leaf, g in to_flat(gradient, "scenic", config).items()}
    expected = {k.removeprefix("gradnorm_ls0.2/"): v for k, v in golden.items() if k.startswith("gradnorm")}
    assert set(norms) == set(expected)
    scale = max(expected.values())
    for leaf, norm in norms.items():
        assert abs(norm - expected[leaf]) < 2e-6 * scale, leaf


@pytest.mark.parametrize("name", FIXTURES)
def test_float64_matches_the_reference(shared, name):
    config, params, video, golden = read(shared, name, dtype="float64")
    with jax.enable_x64(True):
        logits = jax.jit(ViViT(config).apply)({"params": params}, video.astype(np.float64))
    assert logits.dtype == np.float64
    assert relative(logits, golden["logits"]) < 1e-6


def test_conversion_is_exact_and_complete(shared):
    config, params, _, golden = read(shared, "m2_factorized_encoder")
    back = to_flat(params, "scenic", config)
    theirs = {k.removeprefix("params/"): v for k, v in golden.items() if k.startswith("params/")}
    assert set(back) == set(theirs)
    assert all(np.array_equal(back[name], theirs[name]) for name in theirs)
    again = load_params(back, "scenic", config=config)
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    assert all(np.array_equal(x, ours[k]) for k, x in flax.traverse_util.flatten_dict(again, sep="/").items())
