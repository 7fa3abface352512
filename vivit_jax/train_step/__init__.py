"""The device side of training: pure functions of state and batch, compiled by `jax.jit`."""

from vivit_jax.train_step.program import TrainProgram, build_train_program
from vivit_jax.train_step.step import (
    SINGLE_HEAD,
    TrainState,
    as_heads,
    make_eval_step,
    make_train_step,
    map_views,
    normalise,
    step_key,
)
