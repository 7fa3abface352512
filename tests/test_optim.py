"""Schedules and optimizers against the published recipe, written out in NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import optim
from vivit_jax.optim import OptimizerConfig


def test_cosine_with_warm_up_is_base_times_ramp_then_cosine_over_the_steps_after_it():
    config = OptimizerConfig(learning_rate=0.4, warmup_epochs=2.5)
    schedule = optim.learning_rate_schedule(config, total_steps=100, steps_per_epoch=4)
    for step in range(101):
        ramp = min(1.0, step / 10)
        expected = 0.4 * ramp if step < 10 else 0.4 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7), step


def _leaves(seed):
    rng = np.random.default_rng(seed)
    return {
        "layers": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=(2,))},
        "class_token": rng.normal(size=2),
    }


def _run(config, steps):
    """Parameters after some steps of `make_optimizer` on fixed gradients, and the NumPy inputs."""
    schedule = optim.learning_rate_schedule(config, total_steps=steps + 1, steps_per_epoch=1)
    optimizer = optim.make_optimizer(config, schedule)
    now = _as_jax(_leaves(0))
    state = optimizer.init(now)
    for step in range(steps):
        updates, state = optimizer.update(_as_jax(_leaves(step + 1)), state, now)
        now = _add(now, updates)
    return schedule, now


def _as_jax(tree):
    return {k: _as_jax(v) if isinstance(v, dict) else jnp.asarray(v, jnp.float32) for k, v in tree.items()}


def _add(a, b):
    return {k: _add(v, b[k]) if isinstance(v, dict) else v + b[k] for k, v in a.items()}


def test_sgd_is_the_published_one_momentum_without_nesterov_clipped_by_the_global_norm():
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=2, clip_norm=1.0)
    schedule, got = _run(config, steps=5)
    flat = lambda t: np.concatenate([t["class_token"], t["layers"]["bias"], t["layers"]["kernel"].ravel()])  # noqa: E731
    params, momentum = flat(_leaves(0)), 0.0
    for step in range(5):
        gradient = flat(_leaves(step + 1))
        gradient = gradient / max(1.0, np.linalg.norm(gradient))
        momentum = 0.9 * momentum + gradient
        params = params - float(schedule(step)) * momentum
    np.testing.assert_allclose(flat(_as_numpy(got)), params, rtol=2e-6, atol=1e-6)


def _as_numpy(tree):
    return {k: _as_numpy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_falls_on_kernels_alone(name):
    # A constant learning rate: weight decay is the only difference between the two runs.
    runs = [
        _run(
            OptimizerConfig(name=name, schedule="constant", warmup_epochs=0, learning_rate=0.01, weight_decay=decay),
            1,
        )[1]
        for decay in (0.0, 0.5)
    ]
    before = _leaves(0)
    np.testing.assert_allclose(
        runs[1]["layers"]["kernel"],
        runs[0]["layers"]["kernel"] - 0.01 * 0.5 * before["layers"]["kernel"],
        atol=1e-6,
    )
    np.testing.assert_array_equal(runs[0]["layers"]["bias"], runs[1]["layers"]["bias"])
    np.testing.assert_array_equal(runs[0]["class_token"], runs[1]["class_token"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "adam"}, "choose one of sgd, adamw"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be greater than 0"),
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
        ({"schedule": "cos"}, "choose one of cosine"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must be at least 0"),
    ],
)
def test_bad_values_are_named(fields, says):
    with pytest.raises(ValueError, match=says):
        OptimizerConfig(**fields)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="is 25 steps, but the run has only 20"):
        optim.learning_rate_schedule(OptimizerConfig(), total_steps=20, steps_per_epoch=10)
