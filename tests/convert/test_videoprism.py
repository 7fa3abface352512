"""VideoPrism encoders in our model against a float64 NumPy implementation of the published description."""

import dataclasses
import math

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.helpers.oracle import gelu
from vivit_jax.convert import ConversionError, InitFrom, find_format, initialise, load_model, load_params, to_flat
from vivit_jax.convert.tables import FORMATS, Hints
from vivit_jax.models import ViViT, ViViTConfig, count_parameters

FRAMES, SIDE, PATCH, D, HEADS, MLP, SPATIAL, TEMPORAL = 4, 3, 2, 8, 2, 12, 3, 2


def block_shapes(d, heads, mlp):
    """Shapes of one layer, by the names of `layers.py`."""
    shapes = {"self_attention/post/w": (d, heads, d // heads), "self_attention/post/b": (d,)}
    for part in ("query", "key", "value"):
        shapes[f"self_attention/{part}/w"] = (d, heads, d // heads)
        shapes[f"self_attention/{part}/b"] = (heads, d // heads)
    shapes |= {"ff_layer/ffn_layer1/linear/kernel": (d, mlp), "ff_layer/ffn_layer1/linear/bias": (mlp,)}
    shapes |= {"ff_layer/ffn_layer2/linear/kernel": (mlp, d), "ff_layer/ffn_layer2/linear/bias": (d,)}
    return shapes | {
        f"{norm}/{leaf}": (d,) for norm in ("layer_norm", "ff_layer/layer_norm") for leaf in ("scale", "bias")
    }


def encoder_shapes(
    frames=FRAMES, side=SIDE, patch=PATCH, d=D, heads=HEADS, mlp=MLP, spatial=SPATIAL, temporal=TEMPORAL
):
    """Shapes of an encoder with stacked layers, by the names of `encoders.py`."""
    shapes = {"patch_projection/linear/kernel": (patch * patch * 3, d), "patch_projection/linear/bias": (d,)}
    shapes |= {"spatial_pos_emb/emb_var": (side * side, d), "temporal_pos_emb/emb_var": (frames, d)}
    for part, layers in (("spatial", spatial), ("temporal", temporal)):
        shapes |= {f"{part}_ln/scale": (d,), f"{part}_ln/bias": (d,)}
        stack = f"{part}_encoder/transformers_stack/x_layers"
        shapes |= {f"{stack}/{name}": (layers, *shape) for name, shape in block_shapes(d, heads, mlp).items()}
    return shapes


def random_weights():
    """Random weights under `params/`; queries so large that many logits are far beyond the cap of 50."""
    shapes = encoder_shapes()
    rng = np.random.default_rng(0)
    factor = lambda name: 30.0 if "query" in name else 0.5  # noqa: E731
    return {f"params/{name}": factor(name) * rng.normal(size=shape) for name, shape in shapes.items()}


def videoprism_forward(video, weights):
    """VideoPrism: [B, T, H, W, 3] in [0, 1] -> (spatial tokens, final tokens), both [B, T, N, d]."""
    p = {name.removeprefix("params/"): x for name, x in weights.items()}

    def norm(x, name, i=...):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return normal * (1 + p[f"{name}/scale"][i]) + p[f"{name}/bias"][i]

    def attention(x, name, i):
        """Over the last but one axis."""
        q, k, v = (
            np.einsum("...nd,dhk->...hnk", x, p[f"{name}/{part}/w"][i]) + p[f"{name}/{part}/b"][i][:, None]
            for part in ("query", "key", "value")
        )
        scale = 1 / math.sqrt(q.shape[-1])
        logits = 50 * np.tanh(np.einsum("...hnk,...hmk->...hnm", q * scale, k) / 50)
        weights = np.exp(logits)
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("...hnm,...hmk,dhk->...nd", weights, v, p[f"{name}/post/w"][i]) + p[f"{name}/post/b"][i]

    def dense(x, name, i):
        return x @ p[f"{name}/linear/kernel"][i] + p[f"{name}/linear/bias"][i]

    def stack(x, part, layers):
        """[..., sequence, d], normalised at the end."""
        name = f"{part}_encoder/transformers_stack/x_layers"
        x = x + p[f"{part}_pos_emb/emb_var"]
        for i in range(layers):
            x = x + attention(norm(x, f"{name}/layer_norm", i), f"{name}/self_attention", i)
            y = dense(norm(x, f"{name}/ff_layer/layer_norm", i), f"{name}/ff_layer/ffn_layer1", i)
            x = x + dense(gelu(y, "gelu"), f"{name}/ff_layer/ffn_layer2", i)
        return norm(x, f"{part}_ln")

    b, t, h, w, c = video.shape
    patches = video.reshape(b, t, h // PATCH, PATCH, w // PATCH, PATCH, c).transpose(0, 1, 2, 4, 3, 5, 6)
    patches = patches.reshape(b, t, -1, PATCH * PATCH * c)
    spatial = stack(dense(patches, "patch_projection", ...), "spatial", SPATIAL)
    return spatial, stack(spatial.swapaxes(1, 2), "temporal", TEMPORAL).swapaxes(1, 2)


def test_features_match_numpy():
    weights = random_weights()
    config, _ = load_model(weights)
    config = dataclasses.replace(config, dtype="float64", scan_layers=True)
    video = np.random.default_rng(1).uniform(0, 1, (2, *config.video_shape))
    with jax.enable_x64(True):
        params = load_params(weights, config=config)
        run = jax.jit(lambda params, video: ViViT(config).apply({"params": params}, video, features=True))
        features = run(params, 2 * video - 1)  # ours are in [-1, 1]
    spatial, tokens = videoprism_forward(video, weights)
    scale = np.abs(tokens).max()
    np.testing.assert_allclose(features["spatial_tokens"], spatial, rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(features["tokens"], tokens.reshape(2, -1, D), rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(features["pre_logits"], tokens.mean((1, 2)), rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("released", "millions", "expected"),
    [
        (
            {"frames": 16, "d": 768, "heads": 12, "mlp": 3072, "spatial": 12},
            114,
            {"num_frames": 16, "hidden_size": 768, "num_heads": 12, "mlp_dim": 3072, "num_layers": 12},
        ),
        (
            {"frames": 8, "d": 1024, "heads": 16, "mlp": 4096, "spatial": 24},
            354,
            {"num_frames": 8, "hidden_size": 1024, "num_heads": 16, "mlp_dim": 4096, "num_layers": 24},
        ),
    ],
)
def test_released_models_are_described_by_shapes(released, millions, expected):
    """`videoprism_public_v1_base` and `_large`: the sizes of `models.py`, the parameters of their README."""
    shapes = encoder_shapes(**released, side=16, patch=18, temporal=4)
    config = FORMATS["videoprism"].describe(shapes, {}, Hints())
    assert config == ViViTConfig(
        **expected, temporal_layers=4, attention="factorised_encoder", frame_pooling=False, classifier="gap",
        tokenizer="uniform_frames", tubelet_size=(1, 18, 18), image_size=288, num_classes=None,
        activation="gelu", layer_norm_eps=1e-6, attention_logit_cap=50.0,
    )  # fmt: skip
    assert count_parameters(config) == sum(map(math.prod, shapes.values()))
    assert round(count_parameters(config) / 1e6) == millions


def test_video_text_model_yields_its_video_encoder():
    """Parts after the encoder are refused, unless the prefix asks for the encoder alone."""
    weights = random_weights()
    both = {name.replace("params/", "params/vision_encoder/"): x for name, x in weights.items()}
    both["params/text_encoder/token_emb/emb_var"] = np.ones((5, D))
    config, expected = load_model(weights)
    same = lambda params: jax.tree.map(np.testing.assert_array_equal, params, expected)  # noqa: E731
    assert find_format(both) == "videoprism"
    same(load_params(both, config=config))  # the text tower changes nothing
    both["params/auxiliary_encoder/transformers_stack/x_layers/layer_norm/scale"] = np.ones((2, D))
    both["params/contrastive_vision_pooler/pooling_attention_query"] = np.ones((1, D))
    with pytest.raises(ConversionError, match="video embedding") as error:
        load_params(both, config=config)
    assert len(error.value.problems) == 2
    same(load_params(both, config=config, prefix="params/vision_encoder/"))
    started = initialise(both, config)
    same(started.params)
    assert [e.name for e in started.report.entries if e.outcome == "dropped"] == [
        name.removeprefix("params/") for name in both if "vision_encoder/" not in name
    ]


def test_classifier_initialises_from_shorter_encoder():
    """Positions in time are resized, the logit cap is inherited, the head starts at zero."""
    source, encoder = load_model(random_weights())
    config = dataclasses.replace(source, num_frames=6, num_classes=5, attention_logit_cap=None)
    started = initialise(random_weights(), config, InitFrom())
    assert started.config == dataclasses.replace(config, attention_logit_cap=50.0)
    assert started.params["temporal_encoder"]["position_embedding"].shape == (6, D)
    assert not started.params["head"]["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, started.params["tokenizer"], encoder["tokenizer"])


def test_half_precision_is_folded_in_float32():
    """1 + scale and the sum over a patch keep digits that half precision would round away."""
    half = {name: x.astype(np.float16) for name, x in random_weights().items()}
    params = load_params(half, config=load_model(half)[0])
    wide = {name: x.astype(np.float64) for name, x in half.items()}
    scale = wide["params/spatial_ln/scale"]
    np.testing.assert_array_equal(params["spatial_encoder"]["norm"]["scale"], (1 + scale).astype(np.float32))
    kernel, bias = (wide[f"params/patch_projection/linear/{leaf}"] for leaf in ("kernel", "bias"))
    np.testing.assert_array_equal(params["tokenizer"]["bias"], (bias + kernel.sum(0) / 2).astype(np.float32))


def test_unsupported_encoders_are_refused():
    weights = random_weights()
    config, params = load_model(weights)
    for field, value in {"frame_pooling": True, "activation": "gelu_tanh", "attention_logit_cap": None}.items():
        with pytest.raises(ValueError, match=rf"{field}={value!r}, not .*convert\.initialise"):
            load_params(weights, config=dataclasses.replace(config, **{field: value}))
    two = dataclasses.replace(config, tubelet_size=(2, PATCH, PATCH), num_frames=2 * FRAMES)
    with pytest.raises(ValueError, match=r"tubelet_size=\(2, 2, 2\), not one frame"):
        load_params(weights, config=two)
    with pytest.raises(ValueError, match="read, not written"):
        to_flat(params, "videoprism", config)

    stack = "params/spatial_encoder/transformers_stack/x_layers"
    hybrid = {name.replace("/layer_norm/", "/pre_layer_norm/"): x for name, x in weights.items()}
    with pytest.raises(ValueError, match=r"pre_layer_norm/.*primer_hybrid.*norm_policy='pre'"):
        load_model(hybrid)
    flat_pixels = {**weights, "params/patch_projection/linear/kernel": np.ones((15, D))}
    with pytest.raises(ValueError, match="15 rows, which are no square patch of 3 channels"):
        load_model(flat_pixels)
    scale = {f"{stack}/self_attention/per_dim_scale/per_dim_scale": np.ones((SPATIAL, D // HEADS))}
    with pytest.raises(ConversionError, match=r"per_dim_scale \(3, 4\): no place for it"):
        load_params({**weights, **scale}, config=config)
    with pytest.raises(ConversionError, match=r"spatial_encoder/layers/mlp/dense_in/bias \(3, 12\): nothing"):
        load_params(
            {n: x for n, x in weights.items() if n != f"{stack}/ff_layer/ffn_layer1/linear/bias"}, config=config
        )


def test_every_leaf_is_filled_once():
    """Stacked leaves are equal."""
    weights = random_weights()
    _, params = load_model(weights)
    ours = flax.traverse_util.flatten_dict(params, sep="/")
    assert len(ours) == len(weights)
    key = weights["params/temporal_encoder/transformers_stack/x_layers/self_attention/key/w"]
    np.testing.assert_array_equal(ours["temporal_encoder/layers/attention/key/kernel"], key.astype(np.float32))
