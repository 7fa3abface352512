"""Multiply-adds and parameters of the model and the training step, with abstract arguments.

The paper counts one multiply-add as one FLOP, XLA as two flops, and any other elementwise result as one (exponentials
and the like apart). Half of XLA's flops are the published figures to their last digit (Table 2).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vivit_jax.augment import AugmentConfig
from vivit_jax.config.experiment import Experiment
from vivit_jax.models import MaskedViViT, PretrainConfig, ViViT, ViViTConfig, abstract_params
from vivit_jax.train_step import SINGLE_HEAD
from vivit_jax.utils.trees import path_name


@functools.lru_cache(maxsize=256)
def forward_count(config: ViViTConfig, pretrain: PretrainConfig | None = None) -> float:
    """Returns the multiply-adds of one clip's forward pass (XLA's flops / 2), matrix products and all else.

    With a `pretrain.mask_ratio` it is that of masked pretraining. The counted program is unoptimised, float32, unrolled
    and with plain attention, whatever the config's dtype, scan, remat and backend: XLA counts the body of a loop once,
    and a cast as an operation. Nothing is compiled. Some versions of jaxlib sum in float32: about five digits hold.
    """
    config = _countable(dataclasses.replace(config, remat="none", remat_temporal=None))
    model = MaskedViViT(config, pretrain) if pretrain and pretrain.mask_ratio else ViViT(config)
    video = jax.ShapeDtypeStruct((1, *config.video_shape), jnp.float32)

    @jax.jit
    def apply(params: Any, video: jax.Array) -> Any:
        return model.apply({"params": params}, video, rngs={"dropout": jax.random.key(0)})  # which draws the mask

    return _flops(apply, abstract_params(config, model), video) / 2


def train_count(experiment: Experiment, config: ViViTConfig) -> tuple[float, float]:
    """Returns the multiply-adds of a training step: (per clip: forward, backward, loss; per step: optimizer, metrics).

    They are counted as in `forward_count`; what `config` recomputes (`remat`), the second pass of SAM and the random
    bits of dropout count too, augmentation does not. `config` is the model's, with its heads.
    """
    optimizer = dataclasses.replace(experiment.optimizer, accumulate_steps=1)
    plain = dataclasses.replace(experiment, optimizer=optimizer, augment=AugmentConfig())
    program = plain.train_program({head or SINGLE_HEAD: classes for head, classes in config.heads}, mesh=None)
    program = program.with_model(program.model.clone(config=_countable(config)))
    one, two = (_flops(program.step, program.state, abstract_batch(config, clips)) / 2 for clips in (1, 2))
    return two - one, 2 * one - two


def abstract_batch(config: ViViTConfig, clips: int) -> Mapping[str, Any]:
    """Returns the batch of a training step: `video` [clips, T, H, W, C], `label` {head: [clips]}, `mask` [clips]."""
    return {
        "video": jax.ShapeDtypeStruct((clips, *config.video_shape), jnp.uint8),
        "label": {head or SINGLE_HEAD: jax.ShapeDtypeStruct((clips,), jnp.int32) for head, _ in config.heads},
        "mask": jax.ShapeDtypeStruct((clips,), jnp.float32),
    }


def parameters_by_part(params: Any) -> dict[str, int]:
    """Returns {part: parameters}, such as `encoder/layers/attention`; all layers of an encoder together."""
    parts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # Class tokens and position embeddings are leaves of an encoder, and parts of their own.
        part = "/".join(re.sub("/(kernel|bias|scale)$", "", path_name(path)).split("/")[:3])
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


def _countable(config: ViViTConfig) -> ViViTConfig:
    widths = {"dtype": "float32", "residual_dtype": None, "gradient_dtype": None}
    return dataclasses.replace(config, scan_layers=False, attention_backend="xla", **widths)


def _flops(jitted: Any, *args: Any) -> float:
    """Returns XLA's flops of a function of abstract arguments. Only the CPU backend counts without compiling."""
    with jax.set_mesh(jax.sharding.Mesh(jax.local_devices(backend="cpu")[:1], ("all",))):  # traced for it, too
        return float(jitted.lower(*args).cost_analysis()["flops"])
