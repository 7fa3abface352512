"""Whole training runs on a small data set: outputs, exact resumption, refusals, early stopping, SIGTERM."""

import contextlib
import dataclasses
import io
import json
import signal
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.experiment import STEPS, config_file, experiment
from tests.helpers.interrupt import killed_after, recorded_batches, sigterm_at, sigterm_in_evaluation
from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed, predict, sharding, train
from vivit_jax.config.experiment import ConfigError, Experiment, default_config
from vivit_jax.data import build
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import evaluate, evaluator
from vivit_jax.train import initialize, loop, skipped_steps
from vivit_jax.train_step.guard import GuardConfig
from vivit_jax.utils import logs


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A complete run: (workdir, metrics, indices of the examples of each step)."""
    workdir = tmp_path_factory.mktemp("run") / "with_pictures"
    with recorded_batches() as indices:
        metrics = train.train(experiment(data_dir), workdir)
    return workdir, metrics, indices


def restored(workdir, run, step=STEPS):
    root, _ = checkpointing.locate(workdir)
    with checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        split = open_split(build.prepare("moving_digits", run.data.dir), "train")
        program = run.train_program(split.heads, sharding.make_mesh())
        return run, program, checkpoints.restore(program.state, step)


def test_resumed_run_equals_uninterrupted_one_to_the_bit(data_dir, finished, tmp_path):
    whole_workdir, _, whole_indices = finished
    run = experiment(data_dir)

    # Killed after half of the steps: only the last checkpoint remains.
    with killed_after(STEPS // 2), pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path / "w")
    with recorded_batches() as indices:
        train.train(run, tmp_path / "w")

    assert indices[: STEPS // 2] == whole_indices[STEPS // 2 : STEPS]
    (one, metadata_one), (two, metadata_two) = (restored(where, run)[-1] for where in (whole_workdir, tmp_path / "w"))
    assert int(one.step) == int(two.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert metadata_one["checksums"] == metadata_two["checksums"]
    assert metadata_one["metrics"] == metadata_two["metrics"]


def test_finished_run_returns_its_metrics_without_training(data_dir, finished):
    workdir, metrics, _ = finished
    with recorded_batches() as indices:
        again = train.train(experiment(data_dir), workdir)
    assert indices == []
    assert again == pytest.approx(metrics)


@pytest.mark.slow
def test_last_checkpoint_is_on_disk_before_signals_end_the_process_again(data_dir, tmp_path, monkeypatch):
    calls, listening, wait = [], loop.Preemption.listening, checkpointing.Checkpoints.wait

    @contextlib.contextmanager
    def recorded(self):
        with listening(self):
            yield self
        calls.append("no longer listening")

    monkeypatch.setattr(loop.Preemption, "listening", recorded)
    monkeypatch.setattr(checkpointing.Checkpoints, "wait", lambda self: (wait(self), calls.append("saved")))
    train.train(experiment(data_dir, num_steps=2), tmp_path / "w")
    assert calls[:3] == ["saved", "saved", "no longer listening"], "for the metrics of the step, and at the end"


def test_run_writes_logs_pictures_and_usable_checkpoint(finished, data_dir):
    workdir, metrics, _ = finished
    series = logs.read_metrics(workdir / "metrics.jsonl")
    assert [step for step, _ in series["train/loss"]] == [2, 4, 6]
    assert series["eval/verb/top1"][-1] == (STEPS, pytest.approx(metrics["verb/top1"], abs=1e-6))
    names = {p.name for p in (workdir / "pictures").iterdir()}
    assert {"confusion_verb.png", "confusion_noun.png", "training_curves.png"} <= names
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0

    clip = next((data_dir / "moving_digits" / "videos").glob("*.mp4"))
    prediction = predict.Predictor(workdir)(clip)
    assert set(prediction.ranked) == {"verb", "noun", "action"}
    assert sum(p for _, p in predict.Predictor(workdir)(clip, top=8).ranked["verb"]) == pytest.approx(1, abs=1e-5)
    assert prediction.relevance.shape == (2, 2, 4, 4)
    assert prediction.relevance.sum() == pytest.approx(2, abs=1e-5)


def test_tensorboard_shows_training_clips_moving(finished):
    workdir, _, _ = finished
    events = EventAccumulator(str(workdir)).Reload()
    assert events.SummaryMetadata("train/clips").plugin_data.plugin_name == "images"
    (event,) = events.Tensors("train/clips")
    width, height, gif = event.tensor_proto.string_val
    with Image.open(io.BytesIO(gif)) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("GIF", 8, (4 * 56, 56))
    assert (event.step, int(width), int(height)) == (1, 4 * 56, 56)


def test_evaluation_of_checkpoint_agrees_with_training(finished, data_dir):
    workdir, metrics, _ = finished
    result = evaluate.evaluate(experiment(data_dir), workdir)
    assert (result.counted, result.unreadable) == (13, 0)  # 13 videos in batches of 8
    assert result.scalars == pytest.approx(metrics)
    assert "13 videos, each counted once; 2 x 1 views" in result.summary()
    assert json.loads((workdir / "evaluation.json").read_text())["videos"] == 13


def test_scan_and_remat_evaluate_the_same_checkpoint(finished, data_dir):
    workdir, metrics, _ = finished
    other = experiment(data_dir, model__scan_layers=True, model__remat="full")
    assert evaluate.evaluate(other, workdir).scalars == pytest.approx(metrics, rel=1e-5)


@pytest.mark.slow
def test_nothing_compiles_after_the_first_log_evaluation_and_checkpoint(data_dir, tmp_path, monkeypatch):
    """And the train step compiles once, before the first step."""
    compiled, steps = [], {}

    def on_compilation(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    def after_step(self, step, *_):
        steps[step] = len(compiled)

    monkeypatch.setattr(loop.Profiler, "after_step", after_step)  # it is off
    jax.monitoring.register_event_duration_secs_listener(on_compilation)
    try:
        # Logs every 2, evaluates every 4, saves every 3 steps.
        train.train(experiment(data_dir, num_steps=10, evaluation__every_steps=4), tmp_path / "w")
    finally:
        jax.monitoring.unregister_event_duration_listener(on_compilation)
    assert sum("train_step" in name for name in compiled) == 1
    assert steps[10] == steps[5], f"compiled after the first evaluation: {compiled[steps[5] :]}"
    assert not [name for name in compiled[steps[1] :] if "train_step" in name]


def test_checkpoint_of_another_model_is_refused(finished, data_dir):
    workdir, _, _ = finished
    other = experiment(data_dir, model__hidden_size=48)
    with pytest.raises(
        checkpointing.CheckpointError, match=r"holds another model:\n  head_noun/kernel: model \(48, 10\)"
    ):
        evaluate.evaluate(other, workdir)
    with pytest.raises(checkpointing.CheckpointError, match="holds another model"):
        train.train(other, workdir)


def test_indivisible_batch_is_refused_before_data_is_built(tmp_path):
    run = dataclasses.replace(experiment(tmp_path / "none"), batch_size=12)
    with pytest.raises(ValueError, match="batch_size=12 is not divided by the 8 devices"):
        train.train(run, tmp_path / "w")
    assert not (tmp_path / "none").exists()


def test_unmeasured_best_metric_is_refused(data_dir, tmp_path):
    run = experiment(data_dir, checkpoint__best_metric="top1")
    with pytest.raises(ConfigError, match="is not measured on moving_digits; choose one of verb/"):
        train.train(run, tmp_path / "w")


@pytest.mark.slow
def test_nan_steps_end_the_run_and_can_be_repeated(data_dir, tmp_path):
    run = experiment(data_dir, optimizer__name="sgd", optimizer__learning_rate=1e30, optimizer__clip_norm=0.0)
    run = dataclasses.replace(run, guard=GuardConfig(max_consecutive=2))
    with (
        recorded_batches() as indices,
        pytest.raises(FloatingPointError, match=r"2 steps in a row .* last of them step") as error,
    ):
        train.train(run, tmp_path / "w")
    folder = tmp_path / "w" / skipped_steps.FAILED_FOLDER
    assert str(folder) in str(error.value)
    line = json.loads((folder / "step.json").read_text())
    step = line["step"]
    assert line["index"] == sorted(set(indices[step - 1]))
    assert len(line["videos"]) == len(line["index"])
    lines = [json.loads(text) for text in (tmp_path / "w" / skipped_steps.SKIPPED_FILE).read_text().splitlines()]
    assert [(line["step"], line["in_a_row"]) for line in lines] == [(step - 1, 1), (step, 2)]
    # Repeated from the files alone, the step is NaN again.
    stored = np.load(folder / "batch_0.npz")
    assert stored["index"].tolist() == indices[step - 1]
    batch = {"video": stored["video"], "mask": stored["mask"], "index": stored["index"]}
    batch["label"] = {head: stored[f"label/{head}"] for head in ("verb", "noun")}
    run, program, (state, _) = restored(folder, Experiment.from_config(line["config"]), None)
    assert int(state.step) == step - 1
    assert float(program.step(state, batch)[1]["skipped"]) == 1


@pytest.mark.slow
@pytest.mark.long
def test_run_without_improvement_stops_early_for_good(data_dir, tmp_path):
    run = experiment(
        data_dir,
        optimizer__learning_rate=1e-12,  # nothing is learnt, so nothing improves
        optimizer__ema_decay=0.5,
        evaluation__every_steps=1,
        evaluation__num_videos=5,
        evaluation__patience=2,
        checkpoint__best_metric="ema/verb/top1",
        profile__steps="2:2",
    )
    with recorded_batches() as indices:
        metrics = train.train(run, tmp_path / "w")
    assert len(indices) >= 3
    series = logs.read_metrics(tmp_path / "w" / "metrics.jsonl")
    evaluated = [step for step, _ in series["eval/verb/top1"]]
    assert evaluated == [1, 2, 3]  # the first, and two without improvement
    assert json.loads((tmp_path / "w" / "evaluation.json").read_text())["videos"] == 13  # the last is on all
    assert metrics["ema/verb/loss"] == pytest.approx(metrics["verb/loss"])
    for name in ("steps_per_second", "clips_per_second_per_device", "data_wait_seconds"):
        assert series[f"train/{name}"]
    assert "eval/seconds" in series
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))
    assert (tmp_path / "w" / "report.html").exists()
    with recorded_batches() as indices:
        assert train.train(run, tmp_path / "w") == pytest.approx(metrics, nan_ok=True)
    assert indices == []
    averaged = evaluate.evaluate(run, tmp_path / "w", weights="ema")
    assert averaged.scalars["verb/loss"] == pytest.approx(metrics["ema/verb/loss"], abs=1e-6)


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_run_resumes(data_dir, finished, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = experiment(data_dir)
    with sigterm_at(4), pytest.raises(distributed.Preempted) as stop:
        train.train(run, tmp_path / "w")
    assert (stop.value.step, stop.value.code) == (4, distributed.shutdown.PREEMPTED_EXIT_CODE)
    assert signal.getsignal(signal.SIGTERM) is before
    with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 4
    assert train.train(run, tmp_path / "w") == pytest.approx(finished[1])


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_the_step_and_the_resumed_run_evaluates_it(data_dir, finished, tmp_path):
    run = experiment(data_dir)
    with sigterm_in_evaluation(), pytest.raises(distributed.Preempted) as stop:
        train.train(run, tmp_path / "w")
    with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == stop.value.step
        assert checkpoints.metadata(stop.value.step)["metrics"] == {}
    assert train.train(run, tmp_path / "w") == pytest.approx(finished[1])
    assert restored(tmp_path / "w", run, stop.value.step)[-1][1]["metrics"], "of the resumed run's evaluation"


def test_a_step_outlives_the_evaluation_that_fails_after_it(data_dir, finished, tmp_path, monkeypatch, caplog):
    def out_of_memory(*_):
        raise MemoryError("in the evaluation")

    def with_unreadable(*rest):
        return dataclasses.replace(evaluate_all(*rest), unreadable=1)

    run, evaluate_all = experiment(data_dir), evaluator.Evaluator.__call__
    for failing, error in ((out_of_memory, MemoryError), (with_unreadable, OSError)):
        monkeypatch.setattr(evaluator.Evaluator, "__call__", failing)
        with pytest.raises(error, match=r"in the evaluation|1 of 14 videos could not be read"):
            train.train(run, tmp_path / "w")
        with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
            assert checkpoints.latest() == STEPS
            assert checkpoints.metadata(STEPS)["metrics"] == {}
    monkeypatch.setattr(evaluator.Evaluator, "__call__", evaluate_all)
    assert train.train(run, tmp_path / "w") == pytest.approx(finished[1])
    assert restored(tmp_path / "w", run)[-1][1]["metrics"], "of the resumed run's evaluation"
    assert "cannot be compared" not in caplog.text, "the held-out videos are those of the checkpoint"


@pytest.mark.parametrize("trace", ["damaged", "report", "evaluations", "steps"])
def test_a_run_that_lost_its_checkpoints_does_not_begin_again_unasked(trace, tmp_path):
    if trace == "damaged":
        (tmp_path / "damaged" / "checkpoints-8").mkdir(parents=True)
    elif trace == "report":
        (tmp_path / "report.html").write_text("")
    else:
        steps, name = ((4, 8), "eval/top1") if trace == "evaluations" else ((2000, 2001), "train/loss")
        lines = [json.dumps({"step": step, "time": 0.0, name: 0.5}) for step in steps]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    program = types.SimpleNamespace(state=None, init_state=lambda seed: f"begun with seed {seed}")
    setup = types.SimpleNamespace(experiment=Experiment.from_config(default_config()), program=program)
    with checkpointing.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(checkpointing.CheckpointError, match=r"holds no checkpoint.*--from_scratch"):
            initialize.init_or_restore(setup, checkpoints, tmp_path)
        state, _ = initialize.init_or_restore(setup, checkpoints, tmp_path, from_scratch=True)
    assert state == f"begun with seed {setup.experiment.seed}"


def test_clips_of_a_video_are_not_mixed_with_each_other(data_dir, tmp_path):
    run = experiment(data_dir, input__clips_per_video=2, augment__cutmix=1.0)  # a stored config can still be read
    with pytest.raises(ConfigError, match="clips_per_video=2 makes the clips of a video neighbours in the batch"):
        train.train(run, tmp_path)


def test_negative_seed_is_refused():
    config = config_file("moving_digits")
    config.seed = -1
    with pytest.raises(ConfigError, match="seed=-1 must be at least 0"):
        Experiment.from_config(config)
