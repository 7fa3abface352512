"""The hook protocol of the train loop, and the order of a run's hooks."""

import types

import pytest

from tests.helpers.experiment import experiment
from vivit_jax.models import ViViTConfig
from vivit_jax.train import loop
from vivit_jax.train.hooks import Hook, Hooks


class Recorder(Hook):
    def __init__(self, name, calls):
        self._name, self._calls = name, calls

    def waited(self, step, seconds):
        self._calls.append((self._name, "waited", step))

    def before_step(self, step, state):
        self._calls.append((self._name, "before_step", step))

    def after_step(self, step, state, metrics, batch):
        self._calls.append((self._name, "after_step", step))

    def flush(self, step, state):
        self._calls.append((self._name, "flush", step))

    def paused(self, seconds):
        self._calls.append((self._name, "paused", seconds))

    def close(self, failed):
        self._calls.append((self._name, "close", failed))
        if self._name == "a":
            raise OSError("disk full")


def test_hooks_run_in_order_and_all_are_closed():
    calls = []
    hooks = Hooks([Recorder("a", calls), Recorder("b", calls)])
    hooks.waited(1, 0.5)
    hooks.before_step(1, None)
    hooks.after_step(1, None, {}, {})
    hooks.flush(1, None)
    hooks.paused(1)
    with pytest.raises(OSError, match="disk full"):
        hooks.close(failed=False)
    steps = [(name, call, 1) for call in ("waited", "before_step", "after_step", "flush", "paused") for name in "ab"]
    assert calls == [*steps, ("a", "close", False), ("b", "close", False)]


def test_hooks_are_told_of_failure():
    calls = []
    with pytest.raises(ValueError, match="bad batch"), Hooks([Recorder("b", calls)]):
        raise ValueError("bad batch")
    assert calls == [("b", "close", True)]


def test_order_of_a_runs_hooks(tmp_path):
    config = ViViTConfig(hidden_size=12, num_layers=1, num_heads=2, mlp_dim=16, num_classes=3)
    setup = types.SimpleNamespace(
        experiment=experiment(tmp_path),
        program=types.SimpleNamespace(model=types.SimpleNamespace(config=config)),
        train_set=None,
        checkpoint_metadata={},
    )
    hooks = loop.make_hooks(setup, None, tmp_path).hooks
    assert [type(hook).__name__ for hook in hooks] == [
        "Throughput",  # its clock starts as soon as the first step is done
        "Profiler",  # ends its trace before other hooks put work on the devices
        "TrainMetrics",  # reads Throughput; logs before SkippedSteps may end the run
        "SkippedSteps",
    ]
