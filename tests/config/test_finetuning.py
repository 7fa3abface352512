"""Settings that follow from the data and the weights (configs/finetune.py)."""

import dataclasses
import types

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from vivit_jax import finetuning
from vivit_jax.checkpoint import FOLDER, Checkpoints
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.fields import differences, plain
from vivit_jax.config.finetuning import DERIVED, derive
from vivit_jax.config.flags import load_config
from vivit_jax.models import ViViTConfig

LIPS = {"num_frames": np.random.default_rng(0).integers(4, 23, 1200), "frame_size": (56.0, 72.0)}


def config(**changes):
    result = load_config(str(REPOSITORY / "configs" / "finetune.py"))
    result.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return plain(result)


def derived(fields=None, **facts):
    run = Experiment.from_config(derive(fields or config(), **facts))
    model = run.model_config(dict.fromkeys(facts.get("heads", ("label",)), 10))
    return run, model, run.clip_spec(model)


def test_length_of_the_run():
    runs = {videos: derived(videos=videos)[0] for videos in (100, 1000, 10_000)}
    for videos, run in runs.items():
        steps, epoch = run.total_steps(videos), run.steps_per_epoch(videos)
        assert 1000 < steps < 10_000
        warmup = run.optimizer.warmup_epochs * epoch
        assert 0.05 < warmup / steps < 0.15
        evaluations = steps // run.evaluation.interval(epoch)
        assert 15 <= evaluations <= 32
        assert evaluations / 3 <= run.evaluation.patience < evaluations
    for field, rising in (("num_epochs", False), ("batch_size", True)):
        values = [getattr(run, field) for run in runs.values()]
        assert values == sorted(values, reverse=not rising)
    assert [run.batch_size for run in runs.values()] == [16, 32, 64]
    labelled, masked = ViViTConfig(num_frames=16, num_classes=400), ViViTConfig(num_frames=16, num_classes=None)
    image = ViViTConfig(num_frames=1, tubelet_size=(1, 16, 16), num_classes=None)
    for weights, share in ((labelled, 0.5), (image, 0.5), (masked, 1)):  # VideoMAE has 100 epochs on UCF101
        assert derived(videos=1000, weights=weights)[0].num_epochs == share * runs[1000].num_epochs
    short = derived(config(num_steps=400, input__clips_per_video=2), videos=1000)[0]
    epoch = short.steps_per_epoch(1000)
    assert (short.optimizer.warmup_epochs * epoch, short.evaluation.interval(epoch)) == (pytest.approx(40), 62)


def test_short_clips_use_segments_instead_of_loops():
    _, model, clip = derived(**LIPS)
    assert (clip.sampling, clip.stride) == ("segments", 1)
    assert (model.num_frames, model.image_shape, model.grid[0]) == (8, (48, 64), 1), "a tubelet covers the clip"
    assert derived(num_frames=[64] * 50)[2].sampling == "segments", "the whole video"
    for shortest, stride in ((20, 1), (40, 2), (65, 4), (1000, 4)):
        _, model, clip = derived(num_frames=[shortest] * 10 + [2000] * 40)
        assert (clip.sampling, clip.stride) == ("random_start", stride), shortest
        assert model.num_frames * stride <= shortest
    # As long as the weights' clips, or the user's.
    assert derived(num_frames=[200] * 50, weights=ViViTConfig(num_frames=32))[2].sampling == "random_start"
    assert derived(num_frames=[20] * 50, weights=ViViTConfig(num_frames=32))[2].sampling == "segments"
    assert derived(config(model__num_frames=32), num_frames=[20] * 50)[2].sampling == "segments"
    assert derived(num_frames=[300] * 50, fps=60.0)[2].stride == 10


@pytest.mark.parametrize("frame_size", [(56, 72), (256, 455), (455, 256), (256, 1200), (20, 30), (1080, 1920)])
def test_a_small_model_sees_the_whole_frame(frame_size):
    run, model, clip = derived(frame_size=frame_size)
    height, width = model.image_shape
    shown, frame = width / height, frame_size[1] / frame_size[0]
    assert np.clip(frame, 0.5, 2) * 0.8 < shown < np.clip(frame, 0.5, 2) * 1.25
    assert max(*model.grid[1:]) <= 14
    assert min(height, width) <= 112
    assert run.evaluation.spatial_views == (3 if frame > 2.5 else 1)
    assert clip.short_side > min(height, width)


def test_the_model_is_that_of_the_weights():
    video = ViViTConfig.from_name("ViViT-L/16x2", attention="factorised_encoder", num_classes=400)
    run, model, _ = derived(weights=video)
    for name in ("hidden_size", "num_layers", "num_heads", "attention", "tubelet_size", "num_frames", "image_size"):
        assert getattr(model, name) == getattr(video, name), name
    assert run.optimizer.layer_decay == 0.75
    spatial = ViViTConfig(attention="factorised_encoder", temporal_layers=0, num_frames=16)
    assert derived(weights=spatial)[1].temporal_layers == 4, "pretraining leaves the temporal encoder out"
    image = ViViTConfig(num_frames=1, tubelet_size=(1, 32, 32), tokenizer="uniform_frames", image_size=384)
    _, model, clip = derived(weights=image)
    assert (model.attention, model.tokenizer, model.tubelet_size) == ("factorised_encoder", "tubelet", (2, 32, 32))
    assert (model.num_frames, model.image_size, model.classifier, clip.short_side) == (16, 384, "token", 439)


def test_times_start_apart_where_their_positions_are_new():
    """Not where the weights have them, or, in Model 1, the positions of an image model."""
    image = ViViTConfig(num_frames=1, tubelet_size=(1, 16, 16), tokenizer="uniform_frames")
    factorised = {"attention": "factorised_encoder", "num_frames": 16}
    for weights in (None, image, ViViTConfig(**factorised, temporal_layers=0)):
        assert derived(weights=weights)[1].temporal_position_std == 1.0
    for weights in (ViViTConfig(), ViViTConfig(**factorised, temporal_layers=1)):
        assert derived(weights=weights)[1].temporal_position_std == 0.0
    assert derived(config(model__attention="spatiotemporal"), weights=image)[1].temporal_position_std == 0.0


def test_heads():
    assert derived(heads=("verb", "noun"))[0].checkpoint.best_metric == "action/top1"
    assert derived(heads=("room", "tags"))[0].checkpoint.best_metric == "room/top1"
    run = derived(heads=("label",), multi_label=frozenset({"label"}))[0]
    assert (run.checkpoint.best_metric, run.loss.name) == ("mean_average_precision", "sigmoid")


def test_masked_pretraining_of_the_same_videos_has_the_same_model():
    run, pretrained, _ = derived(config(pretrain__mask_ratio=0.75), **LIPS, heads=())
    assert (run.checkpoint.best_metric, run.augment.mixup, run.num_epochs) == ("loss", 0.0, 400.0)
    assert derived(**LIPS)[1] == dataclasses.replace(pretrained, num_classes=10)


def test_given_values_win():
    given = dict(zip(DERIVED, _values(), strict=True))
    given |= {"model.hidden_size": 48, "model.num_layers": 1, "model.num_frames": 4, "model.image_size": 64}
    run = derived(config(**{name.replace(".", "__"): value for name, value in given.items()}), **LIPS)[0].to_dict()
    for name, value in given.items():
        section, _, field = name.rpartition(".")
        assert (run[section] if section else run)[field] == value, name
    assert (run["model"]["num_heads"], run["model"]["mlp_dim"]) == (1, 192), "what is left follows"
    _, model, _ = derived(config(model__name="ViViT-S/16x2"), **LIPS)
    assert (model.name, model.num_frames, model.image_size) == ("ViViT-S/16x2", 16, 224)


def _values():
    stored = derived()[0].to_dict()
    for name in DERIVED:
        section, _, field = name.rpartition(".")
        value = (stored[section] if section else stored)[field]
        changed = {"data.name": "mine", "loss.name": "sigmoid", "checkpoint.best_metric": "loss"}
        changed |= {"input.sampling": "segments", "input.stride": 1, "evaluation.spatial_views": 2}
        yield changed.get(
            name, value / 2 if isinstance(value, float) else value * 2 if isinstance(value, int) else value
        )


def test_a_derived_config_is_stored_and_read_as_it_is():
    run = Experiment.from_config(derive(config(), videos=100, **LIPS))
    assert Experiment.from_config(run.to_dict()).to_dict() == run.to_dict()


def test_a_run_keeps_its_settings_and_needs_its_weights_no_more(data_dir, tmp_path):
    fields = load_config(str(REPOSITORY / "configs" / "finetune.py"))
    fields.update_from_flattened_dict({"data.name": "moving_digits", "data.dir": str(data_dir)})
    run = finetuning.experiment_of(fields)
    begun = dataclasses.replace(run, batch_size=8, model={**run.model, "hidden_size": 64})
    fields.update_from_flattened_dict({"init_from.path": "no longer there"})
    with pytest.raises(FileNotFoundError, match="no longer there"):
        finetuning.experiment_of(fields, tmp_path)
    with Checkpoints(tmp_path / FOLDER) as checkpoints:
        checkpoints.save(3, {"params": {}, "opt_state": np.zeros(1)}, {"config": begun.to_dict()})
    resumed = finetuning.experiment_of(fields, tmp_path)
    assert differences(begun.to_dict(), resumed.to_dict()) == ["init_from.path: None -> no longer there"]


def test_conclusions_of_few_videos(tmp_path):
    def concluded(matrix, trained=None, **fields):
        run = Experiment.from_config(derive(config(**fields), **LIPS))
        results = [types.SimpleNamespace(confusion={"label": np.array(each)}) for each in (trained or matrix, matrix)]
        finetuning.conclude(tmp_path, run, *results, {"label": ["nod", "wave"]})
        return (tmp_path / "conclusions.txt").read_text()

    # The interval is Wilson's: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    text = concluded([[15, 0], [0, 15]])
    assert "100.0% of 30 held-out videos (95 % interval 88.6% to 100.0%)" in text
    assert "Most confused" not in text
    assert "Try next: a test split of your own" in text
    text = concluded([[2, 1], [1, 1]], num_steps=40)
    assert "Most confused: nod taken for wave, 1 of 3 videos." in text
    assert "train longer (config.num_steps=80, config.evaluation.patience=0)" in text
    text = concluded([[11, 4], [3, 2]], trained=[[15, 0], [3, 2]])  # 85 %, of which 75 % are one class
    assert "65.0% of 20 held-out videos" in text
    assert "85.0% of 20 training videos" in text
    assert "Try next: pretrained weights (config.init_from.path; docs/weights.md), more regularisation" in text


def test_facts_are_those_of_the_records(data_dir, caplog):
    fields = load_config(str(REPOSITORY / "configs" / "finetune.py"))
    fields.update_from_flattened_dict({"data.name": "moving_digits", "data.dir": str(data_dir)})
    with caplog.at_level("INFO"):
        run = finetuning.experiment_of(fields)
    assert (run.num_epochs, run.batch_size, run.checkpoint.best_metric) == (300.0, 16, "action/top1")
    assert (run.model["num_frames"], run.input["sampling"], run.model["image_size"]) == (16, "segments", [56, 56])
    assert "20 training videos, 31 to 34 frames" in caplog.text
    assert "Videos of a class of verb: " in caplog.text
    assert "batch_size: 16; " in caplog.text
