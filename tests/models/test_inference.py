"""Inference: the compute dtype, parameters that are cast once, groups of views."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.small_models import MODELS, random_params, random_video, small_config
from vivit_jax import sharding
from vivit_jax.compile import hlo
from vivit_jax.models import ViViT, abstract_params, inference
from vivit_jax.models.attention_choice import Device
from vivit_jax.train_step import map_views
from vivit_jax.utils.trees import path_name


def seconds(monkeypatch, float32, bfloat16):
    """Replaces the measured times."""
    inference.faster_bfloat16.cache_clear()
    monkeypatch.setattr(inference, "_seconds_of_mlp", lambda *_: {"float32": float32, "bfloat16": bfloat16})


def test_auto_follows_the_measured_times(monkeypatch):
    config = small_config(dtype="bfloat16", residual_dtype="bfloat16", gradient_dtype="float32")
    seconds(monkeypatch, 3.0, 1.0)
    assert inference.inference_config(config, "auto") == dataclasses.replace(config, gradient_dtype=None)
    seconds(monkeypatch, 1.2, 1.0)  # noise
    wide = inference.inference_config(config, "auto")
    assert (wide.dtype, wide.residual_dtype) == ("float32", None)
    assert inference.inference_config(config, "auto", "tpu").dtype == "bfloat16"  # not measured
    assert inference.inference_config(config, "model") is config
    assert inference.inference_config(small_config(dtype="float64"), "bfloat16").dtype == "float64"
    inference.faster_bfloat16.cache_clear()


def test_times_are_measured_under_a_mesh_of_several_devices():
    with jax.set_mesh(sharding.make_mesh()):
        measured = inference._seconds_of_mlp(jax.local_devices()[0], 8, 16, 32)
    assert set(measured) == {"float32", "bfloat16"}
    assert all(0 < value < 60 for value in measured.values())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_cast_once_give_the_same_bits(name):
    """Every leaf is cast that the model casts anyhow, and no other."""
    config = small_config(dtype="bfloat16", representation_size=4, **MODELS[name])
    params, video = random_params(config, dtype="float32"), random_video(config, dtype="float32")
    params = jax.device_put(params)
    cast = inference.cast_params(params, config)
    apply = jax.jit(lambda params: ViViT(config).apply({"params": params}, video))
    np.testing.assert_array_equal(apply(cast), apply(params))
    dtypes = {path_name(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(cast)}
    narrow = {path for path, dtype in dtypes.items() if dtype == jnp.bfloat16}
    assert narrow == {path for path in dtypes if "/layers/" in path and "norm" not in path}
    abstract = jax.eval_shape(lambda params: inference.cast_params(params, config), abstract_params(config))
    assert jax.tree.map(lambda x: x.dtype, abstract) == jax.tree.map(lambda x: x.dtype, cast)
    # Nothing to cast, or not by the model.
    for other in ({"dtype": "float32"}, {"gradient_dtype": "float32"}):
        assert inference.cast_params(params, dataclasses.replace(config, **other)) is params


def test_inference_takes_unstacked_parameters(monkeypatch):
    """As predictions on GPUs do; the compiled program holds no stack of the layers, nor slices of one."""
    config = small_config(scan_layers=False, dtype="float32")
    params, video = jax.device_put(random_params(config, dtype="float32")), random_video(config, dtype="float32")
    assert inference.unstacked(params, config) is params  # on a CPU
    monkeypatch.setattr(inference, "target_device", lambda: Device("gpu"))
    assert inference.unstacked(params, dataclasses.replace(config, scan_layers=True)) is params
    apart = inference.unstacked(params, config)
    kernels = apart["encoder"]["layers"]["mlp"]["dense_in"]["kernel"]
    assert [x.shape for x in kernels] == [(config.hidden_size, config.mlp_dim)] * config.num_layers
    jax.tree.map(np.testing.assert_array_equal, inference.stacked(apart), params)
    step = inference.jit(lambda params, video: ViViT(config).apply({"params": params}, video), config)
    np.testing.assert_array_equal(step(apart, video), step(params, video))
    stack = f"f32[{config.num_layers},{config.hidden_size},{config.mlp_dim}]"
    assert stack in step.lower(params, video).compile().as_text()
    assert stack not in step.lower(apart, video).compile().as_text()


@pytest.mark.parametrize(
    ("axes", "clips", "group"),
    [  # 8 videos of 6 views
        ({"data": 4}, 1, 1),
        ({"data": 4}, 3, 2),
        ({"data": 4}, 100, 6),
        ({"data": 2, "fsdp": 2}, 5, 3),
        ({"fsdp": 2, "sequence": 2}, 5, 2),
    ],
)
def test_groups_of_views_give_each_view_its_logits_and_gather_no_clips(axes, clips, group):
    config = small_config(**MODELS["model2"])
    params, model, sizes = random_params(config, dtype="float32"), ViViT(config), []
    video = np.random.default_rng(0).integers(0, 256, (8, 6, *config.video_shape), dtype=np.uint8)
    alone = jax.jit(lambda clips: model.apply({"params": params}, clips / 127.5 - 1))
    expected = np.stack([alone(video[:, view].astype(np.float32)) for view in range(6)])

    def logits(params, video):
        def apply(clips):
            sizes.append(len(clips))
            return model.apply({"params": params}, clips)

        return map_views(apply, video, clips)

    mesh = sharding.make_mesh(axes, jax.devices()[:4])
    with jax.set_mesh(mesh):
        shardings = sharding.state_sharding(mesh, {"params": params})["params"]
        arguments = jax.device_put(params, shardings), sharding.place_batch(video, mesh, 8)
        compiled = jax.jit(logits, out_shardings=sharding.replicated(mesh)).lower(*arguments).compile()
        np.testing.assert_allclose(compiled(*arguments), expected, rtol=1e-4, atol=1e-5)
    assert set(sizes) == {8 * group}
    # Parameters and logits are gathered, not the clips.
    traffic = hlo.collectives(compiled.as_text(), dict(mesh.shape))
    assert "u8" not in {one.dtype for one in traffic}
    if axes == {"data": 4}:
        assert sum(one.bytes for one in traffic) == expected.nbytes
