"""The main job on a miniature of the embedded data set: what it leaves, and exact resumption."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.helpers.experiment import STEPS, config_file, experiment
from tests.helpers.interrupt import killed_after, recorded_batches, sigterm_at
from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed, predict, sharding, train
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.data import build
from vivit_jax.data.open import open_data
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import evaluate
from vivit_jax.train import skipped_steps
from vivit_jax.train_step.guard import GuardConfig
from vivit_jax.utils import logs


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run from start to end; (workdir, metrics, indices of the examples of each step)."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    with recorded_batches() as seen:
        metrics = train.train(experiment(data_dir), workdir)
    return workdir, metrics, seen


def restored(workdir, run, step=STEPS):
    root, _ = checkpointing.locate(workdir)
    with checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        split = open_split(build.prepare("moving_digits", run.data.dir), "train")
        program = run.train_program(split.heads, sharding.make_mesh())
        return run, program, checkpoints.restore(program.state, step)


def test_n_and_n_steps_are_2n_steps_to_the_bit_in_state_and_examples(data_dir, finished, tmp_path):
    whole_workdir, _, whole_seen = finished
    run = experiment(data_dir)

    # Cut off after half of the steps, as a kill would: nothing is told to the run but its last checkpoint.
    with killed_after(STEPS // 2), pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path / "w")
    with recorded_batches() as seen:
        train.train(run, tmp_path / "w")

    assert seen[: STEPS // 2] == whole_seen[STEPS // 2 : STEPS]
    (one, meta_one), (two, meta_two) = (restored(where, run)[-1] for where in (whole_workdir, tmp_path / "w"))
    assert int(one.step) == int(two.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert meta_one["checksums"] == meta_two["checksums"]
    assert meta_one["metrics"] == meta_two["metrics"]


def test_a_finished_run_is_not_run_again_and_says_what_it_reached(data_dir, finished):
    workdir, metrics, _ = finished
    with recorded_batches() as seen:
        again = train.train(experiment(data_dir), workdir)
    assert seen == []
    assert again == pytest.approx(metrics)


def test_it_leaves_logs_pictures_and_a_checkpoint_that_is_enough(finished, data_dir):
    workdir, metrics, _ = finished
    series = logs.read_metrics(workdir / "metrics.jsonl")
    assert [step for step, _ in series["train/loss"]] == [2, 4, 6]
    assert series["eval/verb/top1"][-1] == (STEPS, pytest.approx(metrics["verb/top1"], abs=1e-6))
    names = {p.name for p in (workdir / "pictures").iterdir()}
    assert {"confusion_verb.png", "confusion_noun.png", "training_curves.png"} <= names
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0

    clip = next((data_dir / "moving_digits" / "videos").glob("*.mp4"))
    found = predict.Predictor(workdir)(clip)
    assert set(found.ranked) == {"verb", "noun", "action"}
    assert sum(p for _, p in predict.Predictor(workdir)(clip, top=8).ranked["verb"]) == pytest.approx(1, abs=1e-5)
    assert found.attention.shape == (2, 4, 4)
    assert found.attention.sum() == pytest.approx(1, abs=1e-5)


def test_evaluation_of_the_checkpoint_counts_every_video_once_and_agrees(finished, data_dir):
    workdir, metrics, _ = finished
    result = evaluate.evaluate(experiment(data_dir), workdir)
    assert (result.counted, result.unreadable) == (13, 0)  # 13 videos in batches of 8
    assert result.scalars == pytest.approx(metrics)
    assert "13 videos, each counted once; 2 x 1 views" in result.summary()
    assert json.loads((workdir / "evaluation.json").read_text())["videos"] == 13


def test_scan_and_remat_read_the_same_checkpoint_to_the_same_numbers(finished, data_dir):
    workdir, metrics, _ = finished
    other = experiment(data_dir, model__scan_layers=True, model__remat="full")
    assert evaluate.evaluate(other, workdir).scalars == pytest.approx(metrics, rel=1e-5)


def test_a_checkpoint_of_another_model_is_refused(finished, data_dir):
    workdir, _, _ = finished
    other = experiment(data_dir, model__hidden_size=48)
    with pytest.raises(
        checkpointing.CheckpointError, match=r"holds another model:\n  head_noun/kernel: model \(48, 10\)"
    ):
        evaluate.evaluate(other, workdir)
    with pytest.raises(checkpointing.CheckpointError, match="holds another model"):
        train.train(other, workdir)


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_made(tmp_path):
    run = dataclasses.replace(experiment(tmp_path / "none"), batch_size=12)
    with pytest.raises(ValueError, match="batch_size=12 is not divided by the 8 devices"):
        train.train(run, tmp_path / "w")
    assert not (tmp_path / "none").exists()


def test_a_best_metric_that_is_not_measured_is_refused(data_dir, tmp_path):
    run = experiment(data_dir, checkpoint__best_metric="top1")
    with pytest.raises(ConfigError, match="is not measured on moving_digits; choose one of verb/"):
        train.train(run, tmp_path / "w")


def test_steps_that_are_no_numbers_end_the_run_with_what_repeats_them(data_dir, tmp_path):
    run = experiment(data_dir, optimizer__name="sgd", optimizer__learning_rate=1e30, optimizer__clip_norm=0.0)
    run = dataclasses.replace(run, guard=GuardConfig(max_consecutive=2))
    with (
        recorded_batches() as seen,
        pytest.raises(FloatingPointError, match=r"2 steps in a row .* last of them step") as error,
    ):
        train.train(run, tmp_path / "w")
    folder = tmp_path / "w" / skipped_steps.FAILED_FOLDER
    assert str(folder) in str(error.value)
    line = json.loads((folder / "step.json").read_text())
    step = line["step"]
    assert line["index"] == sorted(set(seen[step - 1]))
    assert len(line["videos"]) == len(line["index"])
    lines = [json.loads(text) for text in (tmp_path / "w" / skipped_steps.SKIPPED_FILE).read_text().splitlines()]
    assert [(found["step"], found["in_a_row"]) for found in lines] == [(step - 1, 1), (step, 2)]
    # The step repeated from what lies there, not from the run: it is no number again.
    stored = np.load(folder / "batch_0.npz")
    assert stored["index"].tolist() == seen[step - 1]
    batch = {"video": stored["video"], "mask": stored["mask"], "index": stored["index"]}
    batch["label"] = {head: stored[f"label/{head}"] for head in ("verb", "noun")}
    run, program, (state, _) = restored(folder, Experiment.from_config(line["config"]), None)
    assert int(state.step) == step - 1
    assert float(program.step(state, batch)[1]["skipped"]) == 1


def test_a_run_that_does_not_improve_ends_early_and_stays_ended(data_dir, tmp_path):
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
    with recorded_batches() as seen:
        metrics = train.train(run, tmp_path / "w")
    assert len(seen) >= 3
    series = logs.read_metrics(tmp_path / "w" / "metrics.jsonl")
    evaluated = [step for step, _ in series["eval/verb/top1"]]
    assert evaluated == [1, 2, 3]  # the first, and two without improvement
    assert json.loads((tmp_path / "w" / "evaluation.json").read_text())["videos"] == 13  # the last is on all
    assert metrics["ema/verb/loss"] == pytest.approx(metrics["verb/loss"])
    for name in ("steps_per_second", "clips_per_second_per_device", "data_wait_seconds"):
        assert series[f"train/{name}"]
    assert "eval/seconds" in series
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))
    assert (tmp_path / "w" / "report.html").stat().st_size > 10_000
    with recorded_batches() as seen:
        assert train.train(run, tmp_path / "w") == pytest.approx(metrics, nan_ok=True)
    assert seen == []
    averaged = evaluate.evaluate(run, tmp_path / "w", weights="ema")
    assert averaged.scalars["verb/loss"] == pytest.approx(metrics["ema/verb/loss"], abs=1e-6)


def test_a_sigterm_saves_the_step_and_the_same_command_goes_on(data_dir, finished, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run = experiment(data_dir)
    with sigterm_at(4), pytest.raises(distributed.Preempted) as stop:
        train.train(run, tmp_path / "w")
    assert (stop.value.step, stop.value.code) == (4, distributed.PREEMPTED_EXIT_CODE)
    assert signal.getsignal(signal.SIGTERM) is before
    with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 4
    assert train.train(run, tmp_path / "w") == pytest.approx(finished[1])


def test_a_folder_of_one_s_own_videos_is_enough(data_dir, tmp_path):
    clips = sorted((data_dir / "moving_digits" / "videos").glob("*.mp4"))
    for number, clip in enumerate(clips[:6]):
        folder = tmp_path / "mine" / ("train" if number < 4 else "val") / ("wave", "nod")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    fields = {
        "data__name": "gestures",
        "data__dir": str(tmp_path / "records"),
        "data__video_dir": str(tmp_path / "mine"),
    }
    training, held_out = open_data(experiment(data_dir, **fields).data)
    assert (training.num_videos, held_out.num_videos) == (4, 2)
    assert training.class_names == {"label": ["nod", "wave"]}
    (tmp_path / "mine" / "train" / "nod" / "late.mp4").write_bytes(b"")  # what is made is not made again
    assert open_data(experiment(data_dir, **fields).data)[0].num_videos == 4
    with pytest.raises(ValueError, match=r"config\.data\.video_dir=.* needs a config\.data\.name of its own.*is taken"):
        open_data(experiment(data_dir, **(fields | {"data__name": "kinetics400"})).data)


def test_a_seed_that_tensorflow_cannot_take_is_named():
    config = config_file("moving_digits")
    config.seed = -1
    with pytest.raises(ConfigError, match="seed=-1 must be at least 0"):
        Experiment.from_config(config)
