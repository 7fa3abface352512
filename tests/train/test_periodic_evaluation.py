"""When a run is evaluated, by which metric steps are compared, and when it ends early."""

import contextlib
import math
import types
from unittest import mock

import pytest

from vivit_jax.checkpoint import score
from vivit_jax.config.experiment import ConfigError, Experiment, default_config
from vivit_jax.evaluation import results
from vivit_jax.train.periodic_evaluation import EarlyStop, PeriodicEvaluation
from vivit_jax.train.setup import check_best_metric


def experiment(**fields):
    config = default_config()
    config.update_from_flattened_dict(fields)
    return Experiment.from_config(config)


def test_lower_loss_is_better_and_nan_is_never_best():
    assert score({"top1": 0.4}, "top1") > score({"top1": 0.3}, "top1")
    assert score({"ema/verb/loss": 0.3}, "ema/verb/loss") > score({"ema/verb/loss": 0.4}, "ema/verb/loss")
    for metrics in ({"loss": math.nan}, {}, None):
        assert score(metrics, "loss") == -math.inf


def test_early_stop_count_survives_a_restart():
    stop = EarlyStop("loss", patience=2)
    for step, loss, over in ((1, 3.0, False), (2, 2.0, False), (3, 2.0, False)):
        stop.update(step, {"loss": loss})
        assert stop.over is over
    again = EarlyStop("loss", 2, stop.record)
    again.update(4, {"loss": math.nan})
    assert again.over
    assert again.record == {"metric": "loss", "best": 2.0, "step": 2, "since": 2}
    assert "loss 2.0000 at step 2" in str(again)
    assert EarlyStop("loss", 2, again.record).over  # the same command does not resume it
    assert not EarlyStop("loss", 3, again.record).over
    assert not EarlyStop("loss", 0, again.record).over
    assert not EarlyStop("top1", 2, again.record).over  # another metric: its evaluations were not counted


def test_last_evaluation_is_on_all_videos_others_on_the_same(tmp_path, monkeypatch):
    """An evaluator that finds more on all videos than on five of them, whatever the weights."""

    def make(videos):
        result = results.Result({"verb/top1": 0.25 if videos == 5 else 0.5}, {}, videos or 40, 0, (1, 1), 0)
        return lambda params, interrupted: result

    progress = types.SimpleNamespace(timed=lambda name: contextlib.nullcontext())
    monkeypatch.setattr("vivit_jax.train.periodic_evaluation.write_result", write := mock.Mock())
    run = experiment(**{"evaluation.num_videos": 5, "checkpoint.best_metric": "verb/top1"})
    split = types.SimpleNamespace(num_videos=40, class_names={})
    setup = types.SimpleNamespace(experiment=run, eval_set=split, eval_interval=1, total_steps=2, make_evaluator=make)
    evaluation = PeriodicEvaluation(setup, tmp_path, mock.Mock(), progress)
    state = types.SimpleNamespace(params=None, ema=None)
    evaluation.run(1, state)
    assert evaluation.metrics == {"verb/top1": 0.25}
    assert not write.called
    evaluation.run(2, state)
    assert evaluation.metrics == {"verb/top1": 0.25}, "what selects the best checkpoint"
    assert evaluation.early_stop.record["step"] == 1
    assert evaluation.final_metrics == {"verb/top1": 0.5}
    (_, written, *_), _ = write.call_args
    assert written.scalars == {"verb/top1": 0.5}


def test_best_metric_must_be_measured():
    heads = {"verb": 8, "noun": 10}
    for name in ("verb/loss", "action/top1", "noun/mean_class_accuracy"):
        check_best_metric(experiment(**{"checkpoint.best_metric": name}), heads, frozenset())
    check_best_metric(
        experiment(**{"checkpoint.best_metric": "ema/loss", "optimizer.ema_decay": 0.9}), {"label": 8}, frozenset()
    )
    with pytest.raises(ConfigError, match=r"no weights are averaged.*choose one of .*verb/loss"):
        check_best_metric(experiment(**{"checkpoint.best_metric": "ema/verb/top1"}), heads, frozenset())


def test_evaluation_interval_from_epochs_or_steps():
    steps = {"every_epochs": 0.5, "every_steps": 7}
    assert experiment(**{"evaluation.every_epochs": 0.5}).evaluation.interval(101.0) == 50
    assert experiment(**{f"evaluation.{k}": v for k, v in steps.items()}).evaluation.interval(101.0) == 7
    assert experiment(**{"evaluation.every_epochs": 0.0}).evaluation.interval(101.0) == 0
    assert experiment(**{"evaluation.every_epochs": 0.001}).evaluation.interval(101.0) == 1
    with pytest.raises(ConfigError, match="patience=2 needs evaluations during training"):
        experiment(**{"evaluation.every_epochs": 0.0, "evaluation.patience": 2})
    with pytest.raises(ConfigError, match=r"evaluation\.num_videos=0 must be at least 1"):
        experiment(**{"evaluation.num_videos": 0})


def test_profile_steps_are_first_and_last():
    assert experiment(**{"profile.steps": "100:105"}).profile.range == (100, 105)
    assert experiment().profile.range is None
    for wrong in ("5:3", "0:2", "7", "a:b"):
        with pytest.raises(ConfigError, match="must be FIRST:LAST"):
            experiment(**{"profile.steps": wrong})
