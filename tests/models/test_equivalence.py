"""Scan, remat, attention backends and bfloat16 do not change the model; parameters and multiply-adds."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_models import MODELS, random_params, random_video, small_config
from vivit_jax.models import ViViT, ViViTConfig, abstract_params, blocks, count_parameters
from vivit_jax.models.attention_backends import attention_weights, tiled_attention, xla_attention

# (parameters, 10^9 multiply-adds of a clip) of ViViT-B/16x2 with 400 classes, as the published code builds it.
COSTS = {
    "model1": (88_954_000, 455.21),
    "model2": (115_062_928, 284.38),
    "average_pool": (86_696_080, 283.89),
    "model3": (117_319_312, 372.32),
    "model4": (88_952_464, 277.13),
}
NOISY = {"dropout_rate": 0.3, "attention_dropout_rate": 0.2, "stochastic_depth_rate": 0.4}


def assert_close(actual, expected, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance), actual, expected)


def losses(config, params, video):
    """(logits in evaluation, (loss, gradients) in training with a fixed key)."""
    model = ViViT(config)
    key = jax.random.key(7, impl="unsafe_rbg")  # compiles ten times as fast as threefry

    @jax.jit
    def run(params, video):
        def loss(params):
            return jnp.square(model.apply({"params": params}, video, train=True, rngs={"dropout": key})).sum()

        return model.apply({"params": params}, video), jax.value_and_grad(loss)(params)

    return run(params, video)


def test_scan_and_remat_do_not_change_numbers():
    """Logits, loss and every gradient, with all regularisers on."""
    plain = small_config(**NOISY, scan_layers=True)
    params, video = random_params(plain, dtype=np.float32), random_video(plain, dtype=np.float32)
    expected = losses(plain, params, video)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert_close(losses(small_config(**NOISY, remat="full"), params, video), expected, 1e-6 * scale)


def test_init_does_not_depend_on_scan():
    programs, video = [], jnp.zeros((1, *small_config().video_shape))
    for scan in (False, True):
        init = jax.jit(ViViT(small_config(**MODELS["model3"], scan_layers=scan)).init)
        programs.append(init.lower(jax.random.key(3), video).as_text())
    assert programs[0] == programs[1]


def test_unrolled_has_no_loop_and_remat_recomputes():
    def program(**fields):
        config = small_config(num_layers=3, **fields)
        video = jax.ShapeDtypeStruct((2, *config.video_shape), jnp.float32)
        loss = lambda p, v: ViViT(config).apply({"params": p}, v).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(abstract_params(config), video)

    unrolled, scanned = program(scan_layers=False), program(scan_layers=True)
    assert "while" not in unrolled.as_text()
    assert "while" in scanned.as_text()
    assert "while" in program().as_text()  # auto, train=False
    flops = {
        remat: program(remat=remat, scan_layers=False).cost_analysis()["flops"] for remat in ("none", "dots", "full")
    }
    assert flops["none"] < flops["dots"] < flops["full"]


def test_remat_dots_stores_the_output_of_tiled_attention_but_not_its_weights(monkeypatch):
    monkeypatch.setattr("vivit_jax.models.attention_backends.QUERIES_PER_TILE", 7)

    def program(remat):
        config = small_config(attention_backend="tiled", remat=remat, num_layers=1)
        video = jax.ShapeDtypeStruct((2, *config.video_shape), jnp.float32)
        return jax.jit(jax.grad(lambda p, v: ViViT(config).apply({"params": p}, v).sum())).lower(
            abstract_params(config), video
        )

    none, dots, full = (program(remat).as_text() for remat in ("none", "dots", "full"))
    assert dots.count("dot_general") == none.count("dot_general") < full.count("dot_general")
    assert "x2x7x13xf32" not in dots  # [rows, tiles, queries, keys], stacked by the loops


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_multiply_adds_match_published_code(name):
    config = ViViTConfig.from_name(
        "ViViT-B/16x2",
        attention_backend="xla",  # the count of a loop is that of its body
        scan_layers=False,
        **{**MODELS[name], **({"temporal_layers": 4} if name == "model2" else {})},
    )
    parameters, multiply_adds = COSTS[name]
    assert count_parameters(config) == parameters
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    program = jax.jit(ViViT(config).apply).lower({"params": abstract_params(config)}, video)
    assert round(program.cost_analysis()["flops"] / 2e9, 2) == multiply_adds


@pytest.mark.parametrize("attend", [xla_attention, tiled_attention])
def test_backends_honour_dropout(attend, monkeypatch):
    monkeypatch.setattr("vivit_jax.models.attention_backends.QUERIES_PER_TILE", 16)
    q, k = (jax.random.normal(jax.random.key(i), (4, 40, 8)) for i in range(2))
    v = jnp.tile(jnp.eye(40), (4, 1, 1))  # the output is the matrix of weights
    attend = functools.partial(attend, dropout_rate=0.25)
    weights, dropped = attend(q, k, v), attend(q, k, v, dropout_key=jax.random.key(5))
    zero = np.asarray(dropped == 0)
    assert abs(zero.mean() - 0.25) < 4 * (0.25 * 0.75 / zero.size) ** 0.5
    np.testing.assert_allclose(dropped[~zero], (weights / 0.75)[~zero], rtol=1e-5)
    assert not np.array_equal(zero[0], zero[1])
    assert not np.array_equal(zero[0, :16], zero[0, 16:32])
    np.testing.assert_array_equal(dropped, attend(q, k, v, dropout_key=jax.random.key(5)))


@pytest.mark.parametrize("name", ["model1", "model4"])
def test_bfloat16_compute_has_float32_logits(name):
    config = small_config(**MODELS[name], dtype="bfloat16")
    params, video = random_params(config, dtype=np.float32), random_video(config, dtype=np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {np.dtype("float32")}
    actual = ViViT(config).apply({"params": params}, video)
    exact = ViViT(small_config(**MODELS[name])).apply({"params": params}, video)
    assert actual.dtype == jnp.float32
    assert 0 < np.abs(actual - exact).max() < 0.03 * np.abs(exact).max()
    q = jnp.ones((2, 3, 4), jnp.bfloat16)
    assert attention_weights(q, q).dtype == jnp.float32
    text = jax.jit(ViViT(config).apply).lower({"params": params}, video).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    # Only the tokenizer and the head multiply in float32.
    assert sum("bf16" not in line for line in products) == 2, products


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="GPUs and TPUs compute GELU in the dtype of their products")
def test_gelu_in_bfloat16_rounds_once():
    """Values and gradients are those of float64, rounded; in bfloat16 throughout 40 % of the values are off."""
    x = np.linspace(-4, 4, 4001).astype(jnp.bfloat16)
    wide = x.astype(np.float64)
    cubic = 0.7978845608 * (wide + 0.044715 * wide**3)
    tanh, slope = np.tanh(cubic), 0.7978845608 * (1 + 3 * 0.044715 * wide**2)
    exact = 0.5 * wide * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * wide * (1 - tanh**2) * slope
    gelu = functools.partial(blocks._gelu, approximate=True)
    value, gradient = jax.jit(lambda x: (gelu(x), jax.vmap(jax.grad(gelu))(x)))(x)
    for actual, expected in zip((value, gradient), exact, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(actual).astype(np.float64), expected, rtol=2.0**-8, atol=1e-5)


def test_import_without_training_frameworks():
    code = (
        "import sys, vivit_jax.models, vivit_jax.convert;"
        "bad = {'tensorflow', 'clu', 'tensorflow_datasets', 'ml_collections', 'torch'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
