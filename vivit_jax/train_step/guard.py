"""Device side of the guard: skips steps whose loss, gradient or update is not finite, or whose norms spike.

A skipped step leaves parameters and optimizer state unchanged, to the bit, and is counted. (`optax.apply_if_finite`
gives up after some failures in a row and lets the next NaN into the parameters.)
"""

import dataclasses
import math
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from vivit_jax.utils.checks import at_least

AVERAGE_DECAY = 0.99  # of the running averages of norms, over about a hundred steps


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped, and when the run ends. A step that is not finite is always skipped.

    Attributes:
      parameter_factor: also skip steps after which the norm of the parameters would exceed this multiple of its running
        average over the accepted steps (of 1, where that is less); greater than 1, or 0 for off.
      spike_factor: skip steps whose gradient norm is above this multiple (> 1) of the accepted steps' average; 0: off.
      max_consecutive: skipped steps in a row that end the run (checked by the train loop); at least 1.
      spike_warmup: accepted steps before `spike_factor` applies, since norms change fast at the start; at least 1.
    """

    parameter_factor: float = 10.0
    spike_factor: float = 0.0
    max_consecutive: int = 5
    spike_warmup: int = 100

    def __post_init__(self) -> None:
        for name, of in (("spike_factor", "gradient"), ("parameter_factor", "parameter")):
            factor = getattr(self, name)
            if factor != 0 and not 1 < factor < math.inf:
                limit = f"the limit is so many times the average {of} norm"
                raise ValueError(f"guard.{name}={factor} must be 0, for off, or greater than 1: {limit}")
        at_least("guard", self, max_consecutive=1, spike_warmup=1)


@flax.struct.dataclass
class GuardState:
    """Counters of the guard, int32 scalars, saved in checkpoints.

    `norm_average`, float32, is the running average of the accepted steps' gradient norms, starting at 0 (divide it by
    1 - AVERAGE_DECAY^accepted, as Adam's moments). `parameter_average` is that of the parameter norms, from the one
    before the first step on: of the first hundred it is the mean.
    """

    skipped: jax.Array  # so far in the run
    consecutive_skips: jax.Array  # since the last accepted step
    accepted: jax.Array
    norm_average: jax.Array
    parameter_average: jax.Array

    @classmethod
    def create(cls, parameter_norm: jax.Array | float = 0.0) -> Self:
        """Returns the state before the first step, for parameters of this norm."""
        zeros = [jnp.zeros((), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.float32)]
        return cls(*zeros, jnp.asarray(parameter_norm, jnp.float32))


def check_step(
    config: GuardConfig,
    state: GuardState,
    loss: jax.Array,
    gradient_norm: jax.Array,
    update_norm: jax.Array | float = 0.0,
    parameter_norm: jax.Array | float = 0.0,
) -> tuple[jax.Array, GuardState]:
    """Returns whether a step with these global norms is accepted (bool scalar), and the next state.

    `parameter_norm` is that after the step. A norm whose square overflows float32 is not finite.
    """
    accept = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & jnp.isfinite(update_norm) & jnp.isfinite(parameter_norm)
    if config.parameter_factor:
        accept &= parameter_norm <= config.parameter_factor * jnp.maximum(state.parameter_average, 1.0)
    if config.spike_factor:
        bias_correction = 1 - AVERAGE_DECAY ** state.accepted.astype(jnp.float32)
        # Multiplied out, to avoid a division by 0 before the first accepted step.
        spikes = gradient_norm * bias_correction > config.spike_factor * state.norm_average
        accept &= ~(spikes & (state.accepted >= config.spike_warmup))
    skip = (~accept).astype(jnp.int32)

    def average(old: jax.Array, new: jax.Array | float, decay: jax.Array | float = AVERAGE_DECAY) -> jax.Array:
        return jnp.where(accept, decay * old + (1 - decay) * jnp.asarray(new, jnp.float32), old)

    return accept, GuardState(
        skipped=state.skipped + skip,
        consecutive_skips=(state.consecutive_skips + 1) * skip,
        accepted=state.accepted + 1 - skip,
        norm_average=average(state.norm_average, gradient_norm),
        parameter_average=average(
            state.parameter_average, parameter_norm, jnp.minimum(AVERAGE_DECAY, 1 - 1 / (state.accepted + 2.0))
        ),
    )
