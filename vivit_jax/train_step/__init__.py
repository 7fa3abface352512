"""The device side of training: pure functions of state and batch, compiled by `jax.jit`."""

from vivit_jax.train_step.step import (
    SINGLE_HEAD,
    TrainProgram,
    TrainState,
    as_heads,
    build_train_program,
    make_eval_step,
    make_train_step,
    map_views,
    normalise,
    step_key,
)
