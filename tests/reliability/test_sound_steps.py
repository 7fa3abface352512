"""Updates that the guard refuses though loss and gradient are finite; the newest sound checkpoint stays."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.experiment import experiment, without_pictures
from tests.helpers.interrupt import on_batch
from tests.train_step.test_guard import batch_of, bits, model
from vivit_jax import checkpoint as checkpointing
from vivit_jax import train
from vivit_jax.train.periodic_evaluation import PeriodicEvaluation
from vivit_jax.train_step import TrainState, make_train_step


def run(factors, start=1.0, steps=None):
    """Steps whose update is the parameters times a factor; returns the states' parameters, and the metrics."""
    transformation = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda g, count, params: (jax.tree.map(lambda p: p * jnp.asarray(factors)[count], params), count + 1),
    )
    step = jax.jit(make_train_step(model, transformation, lambda _: 0.1))
    state, params, seen = TrainState.create({"kernel": jnp.full((3, 3), start)}, transformation), [], []
    for number in range(len(factors)):
        # The transformation counts steps that were taken; the guard restores its state too.
        state, metrics = step(state.replace(opt_state=jnp.int32(number)), batch_of(number))
        params.append(state.params)
        seen.append({name: float(value) for name, value in metrics.items()})
    return params, seen


@pytest.mark.parametrize("factor", [math.inf, math.nan, 6.7e28, -6.7e28, 3e18, 12.0, -12.0])
def test_update_that_wrecks_the_parameters_is_skipped(factor):
    params, seen = run([0.1, factor, 0.1])
    assert [metrics["skipped"] for metrics in seen] == [0, 1, 0]
    assert bits(params[1]) == bits(params[0])
    assert np.isfinite(seen[1]["gradient_norm"])
    assert not seen[1]["update_norm"] <= 30


def test_growth_is_measured_against_many_steps_and_from_the_first():
    _, first = run([20.0])
    assert first[0]["skipped"]
    # Doubling at each step: no single jump is large.
    _, seen = run([1.0] * 40)
    assert seen[-1]["skipped_in_a_row"] > 10
    assert seen[-1]["parameter_norm"] < 1e4
    # From 0, and slow growth, nothing is refused: a norm below 1 counts as 1.
    assert not any(metrics["skipped"] for metrics in run([50.0] * 3, start=1e-6)[1])
    assert not any(metrics["skipped"] for metrics in run([0.05] * 60)[1])


def test_newest_sound_checkpoint_is_never_deleted(tmp_path):
    state = TrainState.create({"kernel": jnp.arange(4.0)}, optax.sgd(0.1))

    def save(*steps):
        """Saves (step, sound) with one newest step kept; returns what is left."""
        with checkpointing.Checkpoints(tmp_path / "c", keep_latest=1, keep_best=0) as checkpoints:
            for step, sound in steps:
                checkpoints.save(step, state, {"sound": sound})
            checkpoints.wait()
            return checkpoints.steps(), checkpoints.newest_sound()

    assert save((1, True), (2, True), (3, False)) == ([2, 3], 2)
    assert save((4, False), (5, False)) == ([2, 5], 2)  # by another process
    assert save((6, True)) == ([6], 6)


@pytest.mark.slow
def test_saving_and_evaluation_wait_while_steps_are_skipped(data_dir, tmp_path, caplog):
    evaluated = {}

    def poison(step, batch):
        if step in (3, 4):
            batch["mask"] = np.full_like(batch["mask"], np.nan)

    def evaluate(self, step, *_):
        self.metrics = evaluated[step] = {"verb/loss": math.nan if step == 6 else 1.0, "verb/top1": 0.5}

    config = experiment(data_dir, checkpoint__keep_latest=9, evaluation__every_steps=3)  # both after 3 of 6 steps
    with on_batch(poison), without_pictures(), mock.patch.object(PeriodicEvaluation, "run", evaluate):
        train.train(config, tmp_path / "w")
    assert list(evaluated) == [5, 6]
    with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [5, 6]
        assert [checkpoints.is_sound(step) for step in (5, 6)] == [True, False]
    assert "Step 6 is not sound: loss [nan]. The newest sound one, 5, is kept." in caplog.text
