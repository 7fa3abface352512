"""Learning-rate schedules."""

import jax
import jax.numpy as jnp
import optax

from vivit_jax.optim.config import OptimizerConfig

TIMESCALE = 10_000  # steps; big_vision's default


def learning_rate_schedule(
    config: OptimizerConfig, *, total_steps: int, steps_per_epoch: float, batch_size: int | None = None
) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up from 0, then decay over the remaining steps.

    At step s < w of the warm-up (s = 0, 1, ...) it is base * s / w. `total_steps` of the whole run; `steps_per_epoch`
    is examples in the split / batch size; `batch_size`, of the global batch, is needed only for numbers of examples.
    """

    def in_steps(field: str, value: float, unit: str) -> float:
        if unit == "examples" and batch_size is None:
            raise ValueError(f"optimizer.{field}={value} is in examples; batch_size is needed to convert it to steps")
        return value * {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / (batch_size or 1)}[unit]

    field, unit = "warmup_epochs", "epochs"
    for name in ("steps", "examples"):
        if getattr(config, f"warmup_{name}") is not None:
            field, unit = f"warmup_{name}", name
    warmup = round(in_steps(field, getattr(config, field), unit))
    if warmup >= total_steps and warmup > 0:
        problem = f"optimizer.{field}={getattr(config, field)} is {warmup} steps, but the run has only {total_steps}"
        raise ValueError(f"{problem}; train for longer or warm up for fewer {unit}")
    base, end, rest = config.learning_rate, config.end_learning_rate, total_steps - warmup
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(base, rest, alpha=end / base)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(base, end, rest)
    elif config.schedule == "step":
        steps = [round(in_steps("schedule_steps", value, config.schedule_unit)) for value in config.schedule_steps]
        if len(set(steps)) < len(steps) or steps[0] <= warmup or steps[-1] >= total_steps:
            given = f"optimizer.schedule_steps={config.schedule_steps} {config.schedule_unit} are the steps {steps}"
            ends = f"after the end of the warm-up, {warmup}, and before that of the run, {total_steps}"
            raise ValueError(f"{given}; they must be ascending, {ends}")
        decay = optax.piecewise_constant_schedule(base, {step - warmup: config.step_decay_factor for step in steps})
    elif config.schedule == "rsqrt":
        timescale = config.rsqrt_timescale
        timescale = TIMESCALE if timescale is None else in_steps("rsqrt_timescale", timescale, config.schedule_unit)

        def decay(step: jax.Array) -> jax.Array:
            """base / sqrt(1 + step / timescale): flat at first, then as 1 / sqrt(step) (arXiv:2106.04560, 3.5)."""
            # join_schedules also evaluates it at negative steps, before its boundary, and discards the result.
            return base / jnp.sqrt(1.0 + jnp.maximum(step, 0) / timescale)

    else:
        decay = optax.constant_schedule(base)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, base, warmup), decay], [warmup])
