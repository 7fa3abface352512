"""Every model against a float64 NumPy implementation of the paper's equations (`tests/helpers/oracle.py`)."""

import jax
import numpy as np
import pytest

from tests.helpers import oracle
from tests.helpers.small_models import MODELS, random_params, random_video, small_config
from vivit_jax.models import ViViT
from vivit_jax.models.attention import MultiHeadAttention
from vivit_jax.models.tokenizers import Tokenizer, uniform_frame_indices

VARIANTS = {
    **MODELS,
    "gap1": {**MODELS["model1"], "classifier": "gap", "activation": "gelu", "layer_norm_eps": 1e-3},
    "gap2": {**MODELS["model2"], "classifier": "gap", "representation_size": 7},
    "space_time": {**MODELS["model3"], "attention_order": "space_time", "qkv_bias": False},
    "frames": {**MODELS["model4"], "tokenizer": "uniform_frames", "tubelet_size": (3, 4, 4), "num_frames": 9},
    "cap": {**MODELS["model3"], "attention_logit_cap": 0.05},
    "scanned": {**MODELS["model2"], "scan_layers": True, "remat": "full"},
    "heads": {**MODELS["average_pool"], "num_classes": {"verb": 3, "noun": 4}, "in_channels": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_model(name):
    config = small_config(dtype="float64", **VARIANTS[name])
    params, video = random_params(config), random_video(config)
    with jax.enable_x64(True):
        actual = jax.jit(ViViT(config).apply)({"params": params}, video)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12), actual, oracle.logits(video, params, config)
    )


@pytest.mark.parametrize("backend", ["xla", "tiled"])
@pytest.mark.parametrize("kind", ["joint", "capped", "space", "time", "dot_product"])
def test_attention_layer(kind, backend, monkeypatch):
    monkeypatch.setattr(
        "vivit_jax.models.attention_backends.QUERIES_PER_TILE", 4
    )  # 15 tokens: four tiles, the last one padded
    n_t, n_s = 5, 3
    over_time, over_space = oracle.neighbours(n_t, n_s)
    axes, see = {
        "joint": ((-2,), [np.ones((15, 15), bool)] * 4),
        "capped": ((-2,), [np.ones((15, 15), bool)] * 4),
        "space": ((-2,), [over_space] * 4),
        "time": ((-3,), [over_time] * 4),
        "dot_product": ((-3, -2), [over_time] * 2 + [over_space] * 2),
    }[kind]
    cap = 2.0 if kind == "capped" else None  # the logits are an order of magnitude larger
    sizes = {"num_heads": 4, "hidden_size": 12, "attention_logit_cap": cap}
    config = small_config(**sizes, dtype="float64", attention_backend=backend)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_t * n_s, 12))
    shaped = x[None] if kind in ("joint", "capped") else x.reshape(1, n_t, n_s, 12)
    with jax.enable_x64(True):
        layer = MultiHeadAttention(config, axes)
        shapes = jax.eval_shape(layer.init, jax.random.key(0), shaped)["params"]
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
        actual = layer.apply({"params": params}, shaped)
    np.testing.assert_allclose(actual.reshape(-1, 12), oracle.attention(x, params, see, cap), rtol=0, atol=1e-12)


def test_uniform_frames_are_evenly_spaced():
    assert uniform_frame_indices(32, 16).tolist() == [2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 23, 24, 26, 28, 30]
    assert uniform_frame_indices(8, 1).tolist() == [4]
    assert uniform_frame_indices(6, 6).tolist() == list(range(6))
    with pytest.raises(ValueError, match="1 to 6"):
        uniform_frame_indices(6, 7)


def test_tubelet_embedding_is_a_convolution():
    """Figure 3: the same numbers as a 3-D convolution whose stride is its kernel."""
    config = small_config()
    params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)
    kernel = params["tokenizer"]["kernel"]
    layout = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(video, kernel, config.tubelet_size, "VALID", dimension_numbers=layout)
    actual = Tokenizer(config).apply({"params": params["tokenizer"]}, video)
    np.testing.assert_allclose(actual, expected + params["tokenizer"]["bias"], atol=2e-6)
