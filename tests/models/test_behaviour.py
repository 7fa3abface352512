"""Regularisation, initialisation, features, attention weights and input checks of the model."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import oracle
from tests.helpers.small_models import MODELS, random_params, random_video, small_config
from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.models.blocks import StochasticDepth, stochastic_depth_rates


def test_stochastic_depth_rate_grows_linearly():
    np.testing.assert_allclose(stochastic_depth_rates(0.3, 4), [0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert stochastic_depth_rates(0.3, 1).tolist() == [0]


@pytest.mark.parametrize("rescale", [True, False])
def test_stochastic_depth_drops_whole_examples(rescale):
    module = StochasticDepth(rescale=rescale, deterministic=False)
    out = np.asarray(module.apply({}, jnp.ones((8000, 2, 3)), jnp.float32(0.3), rngs={"dropout": jax.random.key(0)}))
    assert (out == out[:, :1, :1]).all()
    kept = out[:, 0, 0] > 0
    assert abs(kept.mean() - 0.7) < 0.02
    np.testing.assert_allclose(out[kept], 1 / 0.7 if rescale else 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["model1", "model3", "model4"])
def test_stochastic_depth_in_every_branch(name):
    """The first of two layers drops nothing; the last drops each branch of each example with the full rate."""
    fields = {**MODELS[name], "stochastic_depth_rate": 0.4}
    config = small_config(**fields)
    params = random_params(config, dtype=np.float32)
    video = np.repeat(random_video(config, batch=1, dtype=np.float32), 1500, axis=0)
    run = lambda config: jax.jit(  # noqa: E731
        lambda: ViViT(config).apply({"params": params}, video, train=True, rngs={"dropout": jax.random.key(1)})
    )()
    outcomes = np.unique(np.round(np.asarray(run(config)), 4), axis=0, return_counts=True)[1] / len(video)
    branches = 3 if name == "model3" else 2
    kept = np.array([bin(i).count("1") for i in range(2**branches)])
    np.testing.assert_allclose(np.sort(outcomes), np.sort(0.6**kept * 0.4 ** (branches - kept)), atol=0.045)
    plain = run(small_config(**fields, stochastic_depth_rescale=False))
    ignored = len(np.unique(np.round(np.asarray(plain), 4), axis=0)) == 1
    assert ignored == (name == "model3")  # the published code's behaviour


def test_dropout_is_per_frame_stochastic_depth_per_clip():
    """Model 2's spatial encoder: dropout masks differ between frames, branches are dropped for whole clips."""
    same_in_all_frames = {}
    for name, fields in {"dropout": {"dropout_rate": 0.2}, "depth": {"stochastic_depth_rate": 0.6}}.items():
        config = small_config(**MODELS["average_pool"], **fields, scan_layers=True)
        params = random_params(config, dtype=np.float32)
        frame = random_video(small_config(num_frames=2), batch=1, dtype=np.float32)
        video = np.tile(frame, (12, 2, 1, 1, 1))  # one pair of frames, twice in each of twelve clips
        apply = functools.partial(ViViT(config).apply, {"params": params}, video, features=True)
        still = jax.jit(apply)()["spatial_tokens"]
        noisy = jax.jit(functools.partial(apply, train=True, rngs={"dropout": jax.random.key(2)}))()["spatial_tokens"]
        np.testing.assert_allclose(still[:, 0], still[:, 1], atol=1e-6)
        same_in_all_frames[name] = np.abs(noisy[:, 0] - noisy[:, 1]).max() < 1e-6
        assert np.abs(noisy[0] - noisy[1:]).max() > 1e-3  # clips have different masks
    assert same_in_all_frames == {"dropout": False, "depth": True}


def test_initialisers():
    """Section 4 of the published code: xavier-uniform over flattened kernels, N(0, 0.02) positions, zero head."""
    config = ViViTConfig.from_name("ViViT-Ti/16x2", num_layers=2, num_frames=4, image_size=64)
    params = jax.jit(ViViT(config).init)(jax.random.key(0), jnp.zeros((1, *config.video_shape)))["params"]
    params = jax.tree.map(np.asarray, params)
    layers, d, mlp_dim = params["encoder"]["layers"], 192, 768
    for name in ("query", "key", "value", "out"):
        assert np.abs(layers["attention"][name]["kernel"]).max() == pytest.approx((6 / (d + d)) ** 0.5, rel=1e-3)
        assert not layers["attention"][name]["bias"].any()
    for name in ("dense_in", "dense_out"):
        assert np.abs(layers["mlp"][name]["kernel"]).max() == pytest.approx((6 / (d + mlp_dim)) ** 0.5, rel=1e-3)
        assert layers["mlp"][name]["bias"].std() == pytest.approx(1e-6, rel=0.1)
    assert not np.array_equal(*layers["mlp"]["dense_in"]["kernel"])  # each layer has its own draws
    assert params["encoder"]["position_embedding"].std() == pytest.approx(0.02, rel=0.05)
    assert params["tokenizer"]["kernel"].std() == pytest.approx((2 * 16 * 16 * 3) ** -0.5, rel=0.05)
    zeros = [params["head"]["kernel"], params["head"]["bias"], params["encoder"]["class_token"]]
    assert not any(leaf.any() for leaf in [*zeros, params["tokenizer"]["bias"], layers["norm_mlp"]["bias"]])
    assert (layers["norm_attention"]["scale"] == 1).all()


@pytest.mark.parametrize("name", MODELS)
def test_temporal_position_std_adds_one_vector_to_all_tokens_of_a_time(name):
    """Nothing is added to the class token's position, to Model 2's spatial positions, or where all is one time."""
    config = small_config(**MODELS[name], hidden_size=64, num_frames=6)

    def initial(**changes):
        model = ViViT(dataclasses.replace(config, **changes))
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.config.video_shape)))["params"]
        return flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")

    before, after = initial(), initial(temporal_position_std=2.0)
    timed = "temporal_encoder" if config.attention == "factorised_encoder" else "encoder"
    for leaf, array in before.items():
        added, (n_t, n_h, n_w) = after[leaf] - array, config.grid
        if leaf == f"{timed}/position_embedding":
            first = len(added) % n_t  # the class token's
            vectors = added[first:].reshape(n_t, -1, 64)
            assert len(vectors[0]) == (1 if timed == "temporal_encoder" else n_h * n_w)
            assert not added[:first].any()
            np.testing.assert_allclose(vectors, np.broadcast_to(vectors[:, :1], vectors.shape), atol=1e-6)
            assert vectors[:, 0].std() == pytest.approx(2.0, rel=0.3)
        else:
            assert not added.any(), leaf
    t = config.num_frames
    one_time = [initial(tubelet_size=(t, *config.tubelet_size[1:]), temporal_position_std=std) for std in (0.0, 2.0)]
    jax.tree.map(np.testing.assert_array_equal, *one_time)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_attention_weights(name):
    config = small_config(**MODELS[name])
    params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)
    apply = functools.partial(ViViT(config).apply, {"params": params}, video)
    run = jax.jit(lambda: (apply(), apply(features=True), apply(sow_attention=True, mutable=["intermediates"])))
    plain, features, (logits, state) = run()
    token = config.classifier == "token"
    n_t, n_s = 2, 6
    if config.attention == "factorised_encoder":
        assert features["spatial_tokens"].shape == (2, n_t, 1 + n_s, 8)
        assert features["tokens"].shape == (2, n_t + (config.temporal_layers > 0), 8)
    else:
        assert features["tokens"].shape == (2, n_t * n_s + token, 8)
    head = params["head"]
    np.testing.assert_allclose(logits, features["pre_logits"] @ head["kernel"] + head["bias"], atol=1e-5)
    np.testing.assert_allclose(logits, plain, atol=1e-5)
    weights = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
    shapes = {name: leaf.shape for name, leaf in weights.items()}
    time, space = (2, 2, n_s, 2, n_t, n_t), (2, 2, n_t, 2, n_s, n_s)
    expected = {
        "model1": {"encoder/layers/attention/weights": (2, 2, 2, 13, 13)},
        "average_pool": {"spatial_encoder/layers/attention/weights": (2, 2, n_t, 2, 7, 7)},
        "model3": {"encoder/layers/attention_time/weights": time, "encoder/layers/attention_space/weights": space},
        "model4": {
            "encoder/layers/attention/weights_time": (*time[:3], 1, n_t, n_t),
            "encoder/layers/attention/weights_space": (*space[:3], 1, n_s, n_s),
        },
    }
    expected["model2"] = {**expected["average_pool"], "temporal_encoder/layers/attention/weights": (2, 2, 2, 3, 3)}
    assert shapes == expected[name]
    for leaf in weights.values():
        np.testing.assert_allclose(leaf.sum(-1), 1, atol=1e-5)
        assert leaf.min() >= 0


def test_sown_weights_of_first_layer_match_formula():
    """Model 1: softmax(Q K^T / sqrt(d_h)) of the normalised tokens."""
    config = small_config(dtype="float64", scan_layers=True, remat="full", attention_backend="tiled")
    params, video = random_params(config), random_video(config, batch=1)
    with jax.enable_x64(True):
        _, state = ViViT(config).apply({"params": params}, video, sow_attention=True, mutable=["intermediates"])
    actual = state["intermediates"]["encoder"]["layers"]["attention"]["weights"][0, 0]
    p, first = params["encoder"], oracle.take(params["encoder"]["layers"], 0)
    x = oracle.tokens(video[0], params["tokenizer"], config).reshape(-1, 8)
    x = np.concatenate([p["class_token"][None], x]) + p["position_embedding"]
    y = oracle.layer_norm(x, first["norm_attention"], config.layer_norm_eps)
    first = first["attention"]
    q, k = (np.einsum("nd,dhk->hnk", y, first[w]["kernel"]) + first[w]["bias"][:, None] for w in ("query", "key"))
    weights = np.exp(np.einsum("hqk,hnk->hqn", q, k) / 2)
    np.testing.assert_allclose(actual, weights / weights.sum(-1, keepdims=True), atol=1e-12)


def test_model_without_head_returns_pre_logits():
    config = small_config(num_classes=None, representation_size=6)
    assert "head" not in abstract_params(config)
    out = ViViT(config).apply(
        {"params": random_params(config, dtype=np.float32)}, random_video(config, dtype=np.float32)
    )
    assert out.shape == (2, 6)


def test_bad_inputs_are_rejected():
    config = small_config(dropout_rate=0.1)
    params = random_params(config, dtype=np.float32)
    apply = lambda video, **kw: ViViT(config).apply({"params": params}, video, **kw)  # noqa: E731
    good = jnp.zeros((1, *config.video_shape))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 12, 3\), the config needs \(batch, 4, 8, 12, 3\)"):
        apply(good[:, :3])
    with pytest.raises(ValueError, match=r"uint8.*x / 127.5 - 1"):
        apply(good.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r'rngs=\{"dropout": key\}'):
        apply(good, train=True)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        ViViT(small_config(dtype="float64")).apply({"params": params}, good)
