"""The train step of every model on eight virtual devices, on every kind of mesh, against one device."""

import functools
import re

import jax
import numpy as np
import optax
import pytest

from tests.helpers.small_models import MODELS, random_params, small_config
from vivit_jax import sharding
from vivit_jax.models import ViViT, attention_backends
from vivit_jax.models.attention_choice import Device
from vivit_jax.train_step import TrainState, make_train_step

MIXED = {"fsdp": 2, "tensor": 2, "sequence": 2}
MESHES = [{"data": 8}, {"fsdp": 8}, {"fsdp": 4}, {"tensor": 2}, {"sequence": 4}, MIXED]
COMBINED = [{"fsdp": 8}, {"sequence": 4}, MIXED]  # every axis
NOISY = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
LEARNING_RATE = 0.1


def config_of(name, **fields):
    """Grid 4 x 2 x 3: 4 devices divide neither the 6 tokens of a frame nor 24 tokens plus a class token."""
    sizes = {"hidden_size": 16, "num_heads": 4, "mlp_dim": 32, "num_frames": 8, "scan_layers": True}
    return small_config(**{**sizes, "stochastic_depth_rate": 0.2, "dtype": "float64", **MODELS[name], **fields})


def compiled_step(config, axes, devices=8):
    """(compiled train step, state, batch); parameters and clips do not depend on the mesh."""
    model, optimizer = ViViT(config), optax.sgd(LEARNING_RATE, momentum=0.9)
    mesh = sharding.make_mesh(axes, jax.devices()[:devices])
    sharding.check_model(mesh, config)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (8, *config.video_shape), dtype=np.uint8),
        "label": {"label": rng.integers(0, 5, 8).astype(np.int32)},
        "mask": np.array([1] * 7 + [0], np.float32),
    }
    with jax.enable_x64(config.dtype == "float64"), jax.set_mesh(mesh):
        state = TrainState.create(random_params(config, dtype=config.param_dtype), optimizer)
        shardings = sharding.state_sharding(mesh, state)
        state, batch = jax.device_put(state, shardings), sharding.place_batch(batch, mesh, 8)
        step = make_train_step(model.apply, optimizer, lambda step: LEARNING_RATE)
        jitted = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)))
        fast = {"xla_backend_optimization_level": 0}  # halves compile time, does not affect the partitioner
        return jitted.lower(state, batch).compile(fast), state, batch


@functools.cache
def one_device(config):
    """(HLO text, parameters after a step, loss) on one device."""
    step, state, batch = compiled_step(config, {}, 1)
    state, metrics = step(state, batch)
    return step.as_text(), jax.tree.map(np.asarray, state.params), float(metrics["loss"])


def assert_same_step(config, axes, rtol=1e-9, atol=1e-10):
    """Checks that a step on eight devices gives the parameters of one device; returns the HLO text on eight."""
    _, params, loss = one_device(config)
    step, state, batch = compiled_step(config, axes)
    state, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=rtol)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), params, state.params)
    return step.as_text()


def shapes(text):
    """All float64 shapes in an HLO text."""
    return {tuple(map(int, actual.split(","))) for actual in re.findall(r"f64\[([\d,]+)\]", text)}


def test_sequence_axis_splits_attention_weights_of_model_1():
    config = config_of("model1")
    text = assert_same_step(config, {"sequence": 4})
    assert any(shape[-2:] == (25, 25) for shape in shapes(one_device(config)[0]))
    assert not any(shape[-2:] == (25, 25) for shape in shapes(text))
    assert any(shape[-2:] == (7, 25) for shape in shapes(text))  # 25 queries, padded to 4 x 7


@pytest.mark.slow
def test_tiled_attention_is_split_by_queries():
    config = config_of("model1", attention_backend="tiled")
    text = assert_same_step(config, {"tensor": 2, "sequence": 4})
    assert any(shape[-2:] == (7, 25) for shape in shapes(text))
    assert not any(shape[-2:] == (25, 25) for shape in shapes(text))


@pytest.mark.parametrize("backend", ["splash", "cudnn"])
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("model1", {"tensor": 2, "sequence": 2}),
        pytest.param("model1", MIXED, marks=pytest.mark.slow),
        pytest.param("model2", MIXED, marks=pytest.mark.slow),
        ("model4", {"tensor": 2, "sequence": 2}),
    ],
)
def test_fused_attention_is_split_over_devices(backend, name, axes, monkeypatch):
    """With the kernel interpreted (TPU) or replaced by XLA's (GPU), since there is no such device here."""
    monkeypatch.setattr("vivit_jax.models.attention.choose_backend", lambda *_: backend)
    monkeypatch.setattr(attention_backends, "SPLASH_INTERPRET", True)
    monkeypatch.setattr(attention_backends, "CUDNN_IMPLEMENTATION", "xla")
    if backend == "cudnn":
        for module in ("attention", "blocks"):
            monkeypatch.setattr(f"vivit_jax.models.{module}.target_device", lambda: Device("gpu"))
    # Another number of classes for each backend, since `one_device` is cached by the config.
    config = config_of(name, dtype="float32", num_layers=1, num_classes=6 + (backend == "cudnn"))
    assert_same_step(config, axes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("model1", MIXED),
        ("model2", {"fsdp": 4}),  # hybrid: two groups of four
        ("average_pool", {"sequence": 4}),
        ("model3", {"sequence": 4}),
        ("model4", {"tensor": 2, "sequence": 2}),
    ],
)
def test_step_matches_one_device(name, axes):
    assert_same_step(config_of(name), axes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    [("model1", axes) for axes in MESHES] + [(name, axes) for name in MODELS if name != "model1" for axes in COMBINED],
)
def test_step_matches_one_device_on_every_mesh(name, axes):
    assert_same_step(config_of(name, **NOISY), axes)
