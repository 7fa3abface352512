"""Learning-rate schedules and optimizers: optax chains from plain arguments.

The published recipe (the paper's appendix): SGD with momentum 0.9, cosine decay after a linear warm-up over 2.5 epochs,
gradients clipped at global norm 1, no weight decay. `OptimizerConfig()` is that recipe.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "constant")

# Biases, norms, position embeddings and class tokens are never decayed: every other leaf is called `kernel`.
DECAYED = r"(^|/)kernel$"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a run. The defaults are the paper's recipe (appendix).

    Attributes:
      name: 'sgd' (with momentum, no Nesterov) or 'adamw'.
      learning_rate: base learning rate, reached at the end of the warm-up; > 0.
      schedule: 'cosine', 'linear' (both to `end_learning_rate`) or 'constant'.
      warmup_epochs: epochs of linear warm-up from 0; at least 0, less than the run's.
      end_learning_rate: the learning rate at the last step, at least 0.
      momentum: of SGD, in [0, 1).
      b1, b2, eps: AdamW's moments, in [0, 1), and its epsilon, > 0.
      weight_decay: decoupled, times the learning rate, on kernels only; at least 0 (published: 0).
      clip_norm: gradients are scaled so that their global norm is at most this; 0 turns it off.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 2.5
    end_learning_rate: float = 0.0
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name={self.name!r} is not known; choose one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule={self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate} must be greater than 0")
        for field in ("warmup_epochs", "end_learning_rate", "weight_decay", "clip_norm"):
            if getattr(self, field) < 0:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must be at least 0")
        for field in ("momentum", "b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"optimizer.{field}={getattr(self, field)} must lie in [0, 1)")


def learning_rate_schedule(config: OptimizerConfig, *, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate at each step: base x linear warm-up, then x the decay over the steps after it.

    Args:
      config: the optimizer's settings.
      total_steps: optimizer steps of the whole run, at least 1.
      steps_per_epoch: (examples in the split) / (batch size); turns `warmup_epochs` into steps.

    Returns:
      A function from the step (0-based) to the learning rate. At step s < warm-up it is base * s / warm-up steps.

    Raises:
      ValueError: the warm-up does not leave a step of the run to decay over.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total_steps and warmup > 0:
        raise ValueError(
            f"optimizer.warmup_epochs={config.warmup_epochs} is {warmup} steps, but the run has only {total_steps}; "
            "train for longer or warm up for fewer epochs"
        )
    base, end, rest = config.learning_rate, config.end_learning_rate, total_steps - warmup
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(base, rest, alpha=end / base)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(base, end, rest)
    else:
        decay = optax.constant_schedule(base)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, base, warmup), decay], [warmup])


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as 'encoder/layers/mlp/dense_in/kernel'."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def path_mask(pattern: str) -> Callable[[Any], Any]:
    """A function from a tree to a tree of bools: whether the leaf's path matches the regular expression."""
    regex = re.compile(pattern)
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(regex.search(path_name(path))), tree)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then SGD with momentum or AdamW with decay on kernels only.

    Args:
      config: the optimizer's settings, already checked.
      schedule: from `learning_rate_schedule`.

    Returns:
      An optax transformation. The norm that is clipped is that of the global gradient, over all devices (the
      reference implementation clips on each device before it averages).
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    mask = path_mask(DECAYED)
    if config.name == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay, mask) if config.weight_decay else optax.identity()
        return optax.chain(
            clip,
            optax.trace(decay=config.momentum, nesterov=False) if config.momentum else optax.identity(),
            decay,  # after the momentum: decoupled, as AdamW's
            optax.scale_by_learning_rate(schedule),
        )
    return optax.chain(
        clip,
        optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask),
    )
