"""The guard of the training step: a step whose loss or gradient is no number, or whose gradient is far too large, is
skipped. What it would have changed stays as it was, to the bit, and the skip is counted.

(`optax.apply_if_finite` gives up after some failures in a row and lets the next NaN into the parameters.)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

AVERAGE_DECAY = 0.99  # of the running average of gradient norms: it looks back over about a hundred steps


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped, and when the run gives up. A step that is not finite is always skipped.

    Attributes:
      spike_factor: a step whose gradient norm is more than so many times the running average of the accepted steps' is
        skipped too; 0 turns that off, else greater than 1.
      max_consecutive: so many skipped steps in a row end the run (the loop's business); at least 1.
      spike_warmup: accepted steps before the first is judged by `spike_factor`: the average must know something, and
        norms change fast at the start of a run; at least 1.

    Raises:
      ValueError: a field out of its range.
    """

    spike_factor: float = 0.0
    max_consecutive: int = 5
    spike_warmup: int = 100

    def __post_init__(self) -> None:
        if self.spike_factor != 0 and not 1 < self.spike_factor < math.inf:
            raise ValueError(
                f"guard.spike_factor={self.spike_factor} must be 0, for off, or greater than 1: the limit is so many "
                "times the average gradient norm"
            )
        for field in ("max_consecutive", "spike_warmup"):
            if getattr(self, field) < 1:
                raise ValueError(f"guard.{field}={getattr(self, field)} must be at least 1")


@flax.struct.dataclass
class GuardState:
    """What the guard remembers from step to step, in the checkpoint with all the rest.

    Attributes:
      skipped: int32 scalar, steps skipped so far in the run.
      in_a_row: int32 scalar, how many of them since the last accepted step.
      accepted: int32 scalar, steps that were not skipped.
      norm_average: float32 scalar, the running average of the accepted steps' gradient norms, begun at 0 (so that it
        is to be divided by 1 - AVERAGE_DECAY^accepted, as Adam's moments are).
    """

    skipped: jax.Array
    in_a_row: jax.Array
    accepted: jax.Array
    norm_average: jax.Array

    @classmethod
    def create(cls) -> GuardState:
        """Before the first step."""
        return cls(*(jnp.zeros((), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.float32)))


def judge(
    config: GuardConfig, state: GuardState, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[jax.Array, GuardState]:
    """Whether this step may change anything, and what the guard remembers of it.

    Args:
      config: the limits.
      state: before this step.
      loss: scalar.
      gradient_norm: scalar, global norm of the gradient, at least 0.

    Returns:
      (bool scalar: the step is accepted; the state after it).
    """
    accept = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike_factor:
        seen = 1 - AVERAGE_DECAY ** state.accepted.astype(jnp.float32)
        # Multiplied out: no division by 0 before the first accepted step.
        spikes = gradient_norm * seen > config.spike_factor * state.norm_average
        accept &= ~(spikes & (state.accepted >= config.spike_warmup))
    skip = (~accept).astype(jnp.int32)
    average = AVERAGE_DECAY * state.norm_average + (1 - AVERAGE_DECAY) * gradient_norm.astype(jnp.float32)
    return accept, GuardState(
        skipped=state.skipped + skip,
        in_a_row=(state.in_a_row + 1) * skip,
        accepted=state.accepted + 1 - skip,
        norm_average=jnp.where(accept, average, state.norm_average),
    )


def choose(accept: jax.Array, new: Any, old: Any) -> Any:
    """The tree `new` where the step is accepted, else `old`, bit for bit, whatever NaN `new` holds.

    A select of each element and no branch: on any mesh, and with donated buffers, it is part of the update's own loop.
    """
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
