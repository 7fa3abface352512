"""Multiply-adds and parameters of the model and the training step, with abstract arguments.

The paper counts one multiply-add as one FLOP, XLA as two flops, and any other elementwise result as one (exponentials
and the like apart). Half of XLA's flops are the published figures to their last digit (Table 2).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.train_step import SINGLE_HEAD, TrainState, build_train_program
from vivit_jax.utils.trees import path_name


@functools.lru_cache(maxsize=256)
def forward_count(config: ViViTConfig) -> float:
    """Returns the multiply-adds of one clip's forward pass (XLA's flops / 2), matrix products and all else.

    The counted program is unoptimised, float32, unrolled and with plain attention, whatever the config's dtype, scan,
    remat and backend: XLA counts the body of a loop once, and a cast as an operation. Nothing is compiled. Some
    versions of jaxlib sum in float32, so that about five digits hold.
    """
    config = _countable(dataclasses.replace(config, remat="none", remat_temporal=None))
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)
    return _flops(ViViT(config).apply, {"params": abstract_params(config)}, video) / 2


def train_count(config: ViViTConfig, optimizer: Any, *, label_smoothing: float = 0.0) -> tuple[float, float]:
    """Returns the multiply-adds of a training step: (per clip: forward, backward, loss; per step: optimizer, metrics).

    They are counted as in `forward_count`; recomputation by `remat` and the random bits of dropout count too.
    """
    if not config.heads:
        raise ValueError("num_classes=None leaves no head to train; give the number of classes")
    config, schedule = _countable(config), optax.constant_schedule(0.1)
    program = build_train_program(ViViT(config), optimizer, schedule, label_smoothing=label_smoothing)
    state = program.state

    def per_step(state: TrainState, gradients: Any) -> Any:
        """The update and the norms among the metrics, which do not grow with the batch."""
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        norms = [optax.tree.norm(tree) for tree in (gradients, state.params, updates)]
        return optax.apply_updates(state.params, updates), opt_state, norms

    update = _flops(per_step, state, state.params) / 2
    return _flops(program.step, state, abstract_batch(config, 1)) / 2 - update, update


def abstract_batch(config: ViViTConfig, clips: int) -> Mapping[str, Any]:
    """Returns the batch of a training step: `video` [clips, T, H, W, C], `label` {head: [clips]}, `mask` [clips]."""
    return {
        "video": jax.ShapeDtypeStruct((clips, *config.video_shape), jnp.uint8),
        "label": {head or SINGLE_HEAD: jax.ShapeDtypeStruct((clips,), jnp.int32) for head, _ in config.heads},
        "mask": jax.ShapeDtypeStruct((clips,), jnp.float32),
    }


def parameters_by_part(config: ViViTConfig) -> dict[str, int]:
    """Returns {part: parameters}, such as `encoder/layers/attention`; all layers of an encoder together."""
    parts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        # Class tokens and position embeddings are leaves of an encoder, and parts of their own.
        part = "/".join(re.sub("/(kernel|bias|scale)$", "", path_name(path)).split("/")[:3])
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


def _countable(config: ViViTConfig) -> ViViTConfig:
    widths = {"dtype": "float32", "residual_dtype": None, "gradient_dtype": None}
    return dataclasses.replace(config, scan_layers=False, attention_backend="xla", **widths)


def _flops(function: Callable[..., Any], *args: Any) -> float:
    """Returns XLA's flops of a function of abstract arguments. Only the CPU backend counts without compiling."""
    with jax.default_device(jax.devices("cpu")[0]):
        return float(jax.jit(function).lower(*args).cost_analysis()["flops"])
