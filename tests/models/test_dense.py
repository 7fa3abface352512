"""Dtypes of products, gradients and the residual stream; recomputation."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_models import MODELS, random_params, random_video, small_config
from vivit_jax.models import ViViT
from vivit_jax.models.dense import compiler_options, summed_in


def gradients(config, params, video):
    """The jitted gradient function of the sum of squared logits."""

    def loss(params):
        return (ViViT(config).apply({"params": params}, video) ** 2).sum()

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("contracted", [1, 2])
def test_summed_in_matches_dot_general_with_gradients(contracted):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 5, 2, 4)).astype(np.float32)
    kernel = rng.normal(size=(*inputs.shape[-contracted:], 6, 7)).astype(np.float32)
    numbers = ((tuple(range(4 - contracted, 4)), tuple(range(contracted))), ((), ()))
    ours, theirs = summed_in("float32", "float32"), jax.lax.dot_general
    outputs = [jax.vjp(lambda x, k, f=f: f(x, k, numbers), inputs, kernel) for f in (ours, theirs)]
    cotangent = rng.normal(size=outputs[0][0].shape).astype(np.float32)
    np.testing.assert_allclose(outputs[0][0], outputs[1][0], rtol=1e-5, atol=1e-5)
    for a, b in zip(outputs[0][1](cotangent), outputs[1][1](cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "gradient_dtype", "narrow"),
    [("bfloat16", None, True), ("bfloat16", "float32", False), ("float32", "bfloat16", True)],
)
def test_kernel_gradients_have_the_chosen_dtype(dtype, gradient_dtype, narrow):
    """The dtype that leaves the product is the dtype of the sum over devices."""
    config = small_config(**MODELS["model3"], dtype=dtype, gradient_dtype=gradient_dtype)
    params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)
    actual, exact = (gradients(c, params, video)(params) for c in (config, small_config(**MODELS["model3"])))
    for part, layer in (("attention_time", "query"), ("attention_space", "out"), ("mlp", "dense_in")):
        kernel, truth = (tree["encoder"]["layers"][part][layer]["kernel"] for tree in (actual, exact))
        assert kernel.dtype == jnp.float32
        assert (kernel == kernel.astype(jnp.bfloat16)).all() == narrow
        assert np.linalg.norm(kernel - truth) < 0.05 * np.linalg.norm(truth)


@pytest.mark.parametrize(("dtype", "kept"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_bfloat16_residual_stream_halves_stored_activations(dtype, kept):
    config = small_config(**MODELS["model1"], dtype="bfloat16", residual_dtype=dtype, scan_layers=True, remat="full")
    params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)

    def logits(params):
        return ViViT(config).apply({"params": params}, video)

    residuals = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(logits, p)[1], params))
    assert {leaf.dtype for leaf in residuals if leaf.shape == (2, 2, 13, 8)} == {jnp.dtype(kept)}  # [L, B, 1 + N, d]
    actual = jax.jit(logits)(params)
    assert actual.dtype == jnp.float32
    exact = ViViT(small_config(**MODELS["model1"])).apply({"params": params}, video)
    np.testing.assert_allclose(actual, exact, atol=0.05 * np.abs(exact).max())


def test_remat_temporal_applies_to_temporal_encoder_only():
    flops = {}
    for choice in (("none", None), ("none", "full"), ("full", "none"), ("full", None)):
        config = small_config(
            **MODELS["model2"], dtype="float32", remat=choice[0], remat_temporal=choice[1], scan_layers=False
        )
        params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)
        flops[choice] = gradients(config, params, video).lower(params).cost_analysis()["flops"]
    none, full = flops["none", None], flops["full", None]
    assert none < flops["none", "full"] < flops["full", "none"] < full
    assert flops["none", "full"] - none == pytest.approx(full - flops["full", "none"], rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient_dtype": "float16"}, "gradient_dtype='float16' is not known; choose one of float32, bfloat16"),
        ({"residual_dtype": "bfloat16", "dtype": "float64"}, "residual_dtype='bfloat16'"),
        ({"remat_temporal": "some"}, "remat_temporal='some' is not known; choose one of none, dots, full"),
    ],
)
def test_unknown_choices_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize("model", MODELS)
def test_compiler_knows_its_options_for_gpus(model):
    config = small_config(**MODELS[model])
    gpu = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")]))
    options = compiler_options(config, gpu)
    assert options
    assert not compiler_options(config, jax.sharding.Mesh(jax.devices("cpu")[:1], "data"))
    assert jax.jit(jnp.sqrt, compiler_options=options)(4.0) == 2.0
