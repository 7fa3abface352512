"""Host-side handling of skipped steps: when flags are fetched, what is written, when the run ends."""

import json
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax import checkpoint as checkpointing
from vivit_jax.train import skipped_steps
from vivit_jax.train_step import TrainState


class Flag:
    """A flag on the device that notes when it is fetched."""

    def __init__(self, value, fetched, step):
        self._value, self._fetched, self._step = value, fetched, step

    def __float__(self):
        self._fetched.append(self._step)
        return float(self._value)


def state(step):
    params = {"kernel": jnp.arange(4.0)}
    return TrainState.create(params, optax.sgd(0.1)).replace(step=jnp.int32(step))


def watch(workdir, most):
    train_set = types.SimpleNamespace(locate=lambda index: f"clip {index}")
    return skipped_steps.SkippedSteps(most, train_set, workdir, {"config": {"seed": 3}})


def metrics(value, in_a_row, fetched, step):
    rest = {"skipped_in_a_row": in_a_row, "loss": np.nan if value else 1.0, "gradient_norm": 2.0}
    return {"skipped": Flag(value, fetched, step)} | rest


BATCH = {"index": np.array([7, 5, -1]), "label": {"verb": np.array([1, 2, 0])}}


def test_flags_are_fetched_a_step_late_or_at_once_after_a_skip(tmp_path):
    steps, fetched = watch(tmp_path, most=3), []
    in_a_row = 0
    for step, value in enumerate([0, 0, 0, 1, 0, 0], start=1):
        in_a_row = (in_a_row + 1) * value
        steps.after_step(step, state(step), metrics(value, in_a_row, fetched, step), BATCH)
        # The first at once (a restored run may be inside a streak); 3 with 4; 4 and 5 with 5; 6 waits.
        assert fetched == {1: [1], 2: [1], 3: [1, 2], 4: [1, 2, 3], 5: [1, 2, 3, 4, 5], 6: [1, 2, 3, 4, 5]}[step]
    steps.flush(state(6))
    assert fetched[-1] == 6
    (line,) = (tmp_path / skipped_steps.SKIPPED_FILE).read_text().splitlines()
    expected = {"step": 4, "in_a_row": 1, "loss": None, "gradient_norm": 2.0}
    assert json.loads(line) == expected | {"index": [5, 7], "videos": ["clip 5", "clip 7"]}


@pytest.mark.parametrize("most", [1, 2])
def test_too_many_skipped_steps_save_state_and_batch(tmp_path, most):
    (tmp_path / skipped_steps.FAILED_FOLDER / "of_another_failure").mkdir(parents=True)
    steps, fetched = watch(tmp_path, most), []
    for step in range(1, 4):
        steps.after_step(step, state(step), metrics(0, 0, fetched, step), BATCH)
    if most == 2:
        steps.after_step(4, state(4), metrics(1, 1, fetched, 4), BATCH)
    last = 3 + most
    with pytest.raises(
        skipped_steps.TooManySkippedSteps,
        match=rf"{most} steps in a row were skipped, the last of them step {last} \(loss nan",
    ):
        steps.after_step(last, state(last), metrics(1, most, fetched, last), BATCH)
    folder = tmp_path / skipped_steps.FAILED_FOLDER
    assert not (folder / "of_another_failure").exists()
    np.testing.assert_array_equal(np.load(folder / "batch_0.npz")["label/verb"], [1, 2, 0])
    with checkpointing.Checkpoints(folder / checkpointing.FOLDER, read_only=True) as checkpoints:
        assert checkpoints.steps() == [last - 1]
        assert checkpoints.metadata(last - 1)["config"] == {"seed": 3}
