"""Inference steps: their compute dtype, parameters cast to it once, and their compilation."""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.models.attention_backends import target_device
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.dense import compiler_options
from vivit_jax.utils.trees import path_name

# The leaves that every forward pass casts to the compute dtype, see `dense.dense_options`. The others are used in
# float32: tokenizer, position embeddings, class tokens, LayerNorms, heads.
_CAST = re.compile(r"layers/(attention\w*/(query|key|value|out)|mlp/dense_(in|out))/(kernel|bias)$")
_TIMED_TOKENS = {"cpu": 512}  # of the MLP that is timed, for some milliseconds; elsewhere 16,384
_REPEATS = 5
_CLEARLY_FASTER = 1.5  # noise of a busy machine (it measured 0.6 to 1.2 for equal speeds) must not change the answer
_TOKENS = {"cpu": 2048}  # that one step of inference should have on each device; elsewhere 8,192


def inference_config(config: ViViTConfig, dtype: str, platform: str | None = None) -> ViViTConfig:
    """Returns the config of a trained model for inference; its numbers stay within the rounding of `dtype`.

    `dtype`: 'float32', 'bfloat16', 'auto' (bfloat16 where `faster_bfloat16`, else float32) or 'model', as in training.
    A float64 model keeps its dtype. `platform` of the devices; None: JAX's default.
    """
    if dtype == "model" or config.dtype == "float64":
        return config
    if dtype == "auto":
        faster = faster_bfloat16(platform or jax.default_backend(), config.hidden_size, config.mlp_dim)
        dtype = "bfloat16" if faster else "float32"
    residual_dtype = config.residual_dtype if dtype == "bfloat16" else None
    return dataclasses.replace(config, dtype=dtype, residual_dtype=residual_dtype, gradient_dtype=None)


def jit(step: Callable[..., Any], config: ViViTConfig, mesh: Mesh | None = None) -> Callable[..., Any]:
    """Returns `jax.jit` of a step, (parameters, inputs) -> outputs, replicated over a mesh; see `unstacked`."""
    program = functools.wraps(step)(lambda params, inputs: step(stacked(params), inputs))
    replicated = None if mesh is None else sharding.replicated(mesh)
    return jax.jit(program, out_shardings=replicated, compiler_options=compiler_options(config, mesh))


def unstacked(params: Any, config: ViViTConfig) -> Any:
    """Replaces each stacked parameter by the list of its layers' arrays, on GPUs, unless the layers are a loop.

    XLA would copy them out of the stack in each call: 144 of 307 kernels for a clip of ViT-B/16x2, Model 1.
    """
    if target_device().platform != "gpu" or config.scan_layers is True:
        return params
    return jax.tree_util.tree_map_with_path(lambda path, x: list(x) if "/layers/" in path_name(path) else x, params)


def stacked(params: Any) -> Any:
    """Reverses `unstacked`; in a program, XLA removes the copy."""
    return jax.tree.map(lambda x: jnp.stack(x) if type(x) is list else x, params, is_leaf=lambda x: type(x) is list)


def cast_params(params: Any, config: ViViTConfig) -> Any:
    """Returns the parameters with those that a forward pass casts to `config.dtype` cast already.

    The results of the model are the same to the bit, without a cast of all kernels in each call; shardings stay.
    """
    # The products of `dense.summed_in` cast their kernel themselves, but add the bias in float32.
    if config.dtype == config.param_dtype or config.gradient_dtype not in (None, config.dtype):
        return params
    return _cast(params, config.dtype)


@functools.partial(jax.jit, static_argnums=1)  # compiled once, not in each evaluation
def _cast(params: Any, dtype: str) -> Any:
    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if _CAST.search(path_name(path)) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def clips_at_once(config: ViViTConfig, platform: str | None = None) -> int:
    """Returns the clips that one step of inference should have on each device at least, 1 or more.

    Some thousand tokens occupy a device, more only take memory: a clip of ViViT-B/16x2 has 3,136, one of a small model
    less than a hundred. `platform` of the devices; None: JAX's default.
    """
    tokens = _TOKENS.get(platform or jax.default_backend(), 8192)
    return math.ceil(tokens / math.prod(config.grid))


@functools.cache
def faster_bfloat16(platform: str, hidden_size: int, mlp_dim: int) -> bool:
    """Returns whether the devices of a platform compute an MLP clearly faster in bfloat16 than in float32.

    TPUs do. Elsewhere an MLP of these widths is timed in both, once in a process: older GPUs do not, CPUs with AMX do
    with newer versions of jax, but not for small widths, where GELU and casts cost more than the products. All
    processes of a run get the answer of process 0. Logs the answer.
    """
    if platform == "tpu":
        return True
    device = jax.local_devices(backend=platform)[0]
    tokens = _TIMED_TOKENS.get(platform, 16384)
    seconds = _seconds_of_mlp(device, tokens, hidden_size, mlp_dim)
    ratio = seconds["float32"] / seconds["bfloat16"]
    if jax.process_count() > 1:
        ratio = float(multihost_utils.broadcast_one_to_all(np.float32(ratio)))
    faster = ratio >= _CLEARLY_FASTER
    dtype, where = "bfloat16" if faster else "float32", f"here ({device.device_kind}, jax {jax.__version__})"
    measured = f"in bfloat16, an MLP of {hidden_size} x {mlp_dim} is {ratio:.1f} times as fast as in float32"
    logging.info("Inference in %s: %s %s.", dtype, measured, where)
    return faster


def _seconds_of_mlp(device: jax.Device, tokens: int, hidden_size: int, mlp_dim: int) -> dict[str, float]:
    """Returns the shortest time of an MLP in each dtype, alternating."""

    def mlp(x: jax.Array, kernel_in: jax.Array, bias: jax.Array, kernel_out: jax.Array) -> jax.Array:
        return jax.nn.gelu(x @ kernel_in + bias) @ kernel_out

    placement, programs = jax.sharding.SingleDeviceSharding(device), {}
    shapes = (tokens, hidden_size), (hidden_size, mlp_dim), (mlp_dim,), (mlp_dim, hidden_size)
    with jax.set_mesh(jax.sharding.Mesh([device], ("all",))):
        for dtype in ("float32", "bfloat16"):
            arrays = [jax.device_put(np.ones(shape, dtype), placement) for shape in shapes]
            programs[dtype] = jax.jit(mlp).lower(*arrays).compile(), arrays
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(1 + _REPEATS):  # the first is a warm-up, and never the shortest
        for dtype, (program, arrays) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    return seconds
