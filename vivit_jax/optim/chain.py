"""The optimizer of a run: a chain of optax transformations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from vivit_jax.optim.config import OptimizerConfig
from vivit_jax.optim.layers import check_found, path_mask, scale_by_depth, scale_by_trust_ratio, trained_mask


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation that also tells which parameters it trains, so that only these are differentiated.

    `trained` maps parameters to a tree of bools; frozen parameters get zero updates. `head_learning_rate` is in
    multiples of the schedule's.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    trained: Callable[[Any], Any]
    head_learning_rate: float = 1.0


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> Optimizer:
    """Chains gradient clipping by global norm, an optimizer (SGD with momentum, AdamW, LAMB, Lion) and weight decay.

    The norm is that of the global gradient of the trained parameters (the reference clips on each device before it
    averages). Accumulation, EMA and SAM belong to the train step.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    transformation = optax.chain(clip, *_rule(config, schedule))
    trained = trained_mask(config.frozen)
    if config.frozen:
        transformation = optax.partition(
            {"trained": transformation, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(lambda is_trained: "trained" if is_trained else "frozen", trained(params)),
        )
    if config.layer_decay < 1 or config.head_learning_rate != 1:
        # After the partition, because depths count frozen layers too.
        transformation = optax.chain(transformation, scale_by_depth(config.layer_decay, config.head_learning_rate))

    def init(params: Any) -> Any:
        if config.weight_decay:
            check_found(config.decay_pattern, params, "optimizer.decay_pattern")
        return transformation.init(params)

    return Optimizer(init, transformation.update, trained, config.head_learning_rate)


def _rule(config: OptimizerConfig, schedule: optax.Schedule) -> tuple[optax.GradientTransformation, ...]:
    """The transformations from the clipped gradient to the update."""
    mask = path_mask(config.decay_pattern)
    # As published; Lion: arXiv:2302.06675, section 4.
    b2 = config.b2 if config.b2 is not None else 0.99 if config.name == "lion" else 0.999
    moments = {"b1": config.b1, "b2": b2}
    decay = {"weight_decay": config.weight_decay, "mask": mask}
    if config.name == "adamw":
        return (optax.adamw(schedule, eps=config.eps, **moments, **decay),)
    if config.name == "lion":
        return (optax.lion(schedule, **moments, **decay),)
    if config.name == "lamb":
        return (
            optax.scale_by_adam(eps=config.eps, **moments),
            optax.add_decayed_weights(**decay),
            scale_by_trust_ratio(),
            optax.scale_by_learning_rate(schedule),
        )
    return (
        optax.trace(decay=config.momentum, nesterov=False) if config.momentum else optax.identity(),
        # After the momentum: decoupled, as in AdamW.
        optax.add_decayed_weights(**decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )
