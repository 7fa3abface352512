"""Device side of the guard: skips steps whose loss or gradient is not finite, or whose gradient norm spikes.

A skipped step leaves parameters and optimizer state unchanged, to the bit, and is counted. (`optax.apply_if_finite`
gives up after some failures in a row and lets the next NaN into the parameters.)
"""

import dataclasses
import math
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

from vivit_jax.utils.checks import at_least

AVERAGE_DECAY = 0.99  # of the running average of gradient norms, over about a hundred steps


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is skipped, and when the run ends. A step that is not finite is always skipped.

    Attributes:
      spike_factor: also skip steps whose gradient norm exceeds this multiple of the running average over the accepted
        steps; greater than 1, or 0 for off.
      max_consecutive: skipped steps in a row that end the run (checked by the train loop); at least 1.
      spike_warmup: accepted steps before `spike_factor` applies, since norms change fast at the start; at least 1.
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
        at_least("guard", self, max_consecutive=1, spike_warmup=1)


@flax.struct.dataclass
class GuardState:
    """Counters of the guard, int32 scalars, saved in checkpoints.

    `norm_average`, float32, is the running average of the accepted steps' gradient norms, starting at 0 (divide it by
    1 - AVERAGE_DECAY^accepted, as Adam's moments).
    """

    skipped: jax.Array  # so far in the run
    consecutive_skips: jax.Array  # since the last accepted step
    accepted: jax.Array
    norm_average: jax.Array

    @classmethod
    def create(cls) -> Self:
        """Returns the state before the first step."""
        return cls(*(jnp.zeros((), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, jnp.float32)))


def check_step(
    config: GuardConfig, state: GuardState, loss: jax.Array, gradient_norm: jax.Array
) -> tuple[jax.Array, GuardState]:
    """Returns whether a step with this loss and global gradient norm is accepted (bool scalar), and the next state."""
    accept = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    if config.spike_factor:
        bias_correction = 1 - AVERAGE_DECAY ** state.accepted.astype(jnp.float32)
        # Multiplied out, to avoid a division by 0 before the first accepted step.
        spikes = gradient_norm * bias_correction > config.spike_factor * state.norm_average
        accept &= ~(spikes & (state.accepted >= config.spike_warmup))
    skip = (~accept).astype(jnp.int32)
    average = AVERAGE_DECAY * state.norm_average + (1 - AVERAGE_DECAY) * gradient_norm.astype(jnp.float32)
    return accept, GuardState(
        skipped=state.skipped + skip,
        consecutive_skips=(state.consecutive_skips + 1) * skip,
        accepted=state.accepted + 1 - skip,
        norm_average=jnp.where(accept, average, state.norm_average),
    )


def select_tree(accept: jax.Array, new: Any, old: Any) -> Any:
    """Returns the tree `new` if the step is accepted, else `old`, to the bit, whatever NaN `new` holds.

    Selects each element instead of branching, so that XLA fuses it with the update, on any mesh, with donated buffers.
    """
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
