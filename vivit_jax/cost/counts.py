"""Multiply-adds: the compiler's count of our programs, and the matrix products alone in closed form.

The paper counts one multiply-add as one FLOP. XLA counts a multiply-add as two flops, and one flop for each number that
an addition, a multiplication, a maximum, ... makes; exponentials and the like it counts apart ("transcendentals"). Half
of its flops is what the published figures are, to their last digit (Table 2).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.train_step import SINGLE_HEAD, TrainState, make_train_step


@functools.lru_cache(maxsize=256)
def forward_count(config: ViViTConfig) -> float:
    """The compiler's count of the forward pass of one clip, in multiply-adds (XLA's flops / 2).

    Of the unoptimised program in float32, unrolled and with plain attention, whatever the config says of dtype, scan,
    remat and backend: XLA counts the body of a loop once, and a change of dtype as an operation. Nothing is compiled.
    Some versions of jaxlib add up in float32: about five digits hold.

    Args:
      config: the architecture.

    Returns:
      Matrix products and everything else (softmax, LayerNorm, GELU, biases, residuals).

    Raises:
      RuntimeError: JAX was told to leave the CPU out, and only its backend counts without compiling.
    """
    config = _countable(dataclasses.replace(config, remat="none", remat_temporal=None))
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    return _flops(ViViT(config).apply, {"params": abstract_params(config)}, video) / 2


def train_count(
    config: ViViTConfig,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
) -> tuple[float, float]:
    """The compiler's count of a training step, in multiply-adds (XLA's flops / 2); the program as `forward_count`'s.

    Args:
      config: the architecture; what `remat` recomputes counts, as do the random bits of dropout.
      optimizer: optax transformation.
      label_smoothing: e of the loss, in [0, 1).

    Returns:
      (for each clip of a batch: forward, backward, loss; for each step: optimizer and metrics).

    Raises:
      RuntimeError: as `forward_count`.
      ValueError: the model has no head to train.
    """
    if not config.heads:
        raise ValueError("num_classes=None leaves no head to train; give the number of classes")
    config = _countable(config)
    step = make_train_step(
        ViViT(config).apply, optimizer, optax.constant_schedule(0.1), label_smoothing=label_smoothing
    )
    state = abstract_state(config, optimizer)

    def once(state: TrainState, gradients: Any) -> Any:
        """What a step does that does not grow with the batch: the update, and the norms among its metrics."""
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        norms = [optax.tree.norm(tree) for tree in (gradients, state.params, updates)]
        return optax.apply_updates(state.params, updates), opt_state, norms

    update = _flops(once, state, state.params) / 2
    return _flops(step, state, abstract_batch(config, 1)) / 2 - update, update


def abstract_state(config: ViViTConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of training as `jax.ShapeDtypeStruct`s: what `vivit_jax.train` saves and keeps on each device."""
    return jax.eval_shape(lambda params: TrainState.create(params, optimizer), abstract_params(config))


def abstract_batch(config: ViViTConfig, clips: int) -> Mapping[str, Any]:
    """A batch as the training step takes it: `video` uint8 [clips, T, H, W, C], `label` {head: [clips]}, `mask`."""
    return {
        "video": jax.ShapeDtypeStruct((clips, *config.video_shape), jnp.uint8),
        "label": {head or SINGLE_HEAD: jax.ShapeDtypeStruct((clips,), jnp.int32) for head, _ in config.heads},
        "mask": jax.ShapeDtypeStruct((clips,), jnp.float32),
    }


def parameters_by_part(config: ViViTConfig) -> dict[str, int]:
    """Parameters by part, `encoder/layers/attention` -> how many; all layers of an encoder together."""
    parts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        names = [key.key for key in path][:-1] or [path[0].key]
        if len(path) == 2 and "encoder" in path[0].key:
            names = [path[0].key, path[1].key]  # the class token and the positions, which are leaves
        part = "/".join(names[:3])
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


def _countable(config: ViViTConfig) -> ViViTConfig:
    widths = {"dtype": "float32", "residual_dtype": None, "gradient_dtype": None}
    return dataclasses.replace(config, scan_layers=False, attention_backend="xla", **widths)


def _flops(function: Callable[..., Any], *args: Any) -> float:
    """XLA's flops of a function of abstract arguments, by the CPU's backend: the plug-ins of others cannot count."""
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(f"counting needs JAX's CPU backend beside the accelerator's: {error}") from error
    with jax.default_device(cpu):
        return float(jax.jit(function).lower(*args).cost_analysis()["flops"])
