"""Masked pretraining on videos without labels: resumed to the bit, evaluated, and the start of a classifier."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from tests.helpers.experiment import STEPS, experiment
from tests.helpers.interrupt import killed_after
from tests.helpers.videos import write_video
from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, features, predict, sharding, train
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.sections import REPORT_FILE
from vivit_jax.evaluation import evaluate
from vivit_jax.models import ViViT
from vivit_jax.train import initialize
from vivit_jax.train.setup import set_up

MASKED = {"pretrain__mask_ratio": 0.75, "pretrain__decoder_layers": 1, "checkpoint__best_metric": "loss"}


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> dict[str, str]:
    """Fields of a config with a folder of 12 videos without labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for number in range(12):
        write_video(folder / "videos" / f"{number}.mp4")
    return {"data__name": "mine", "data__dir": str(folder), "data__video_dir": str(folder / "videos")}


@pytest.fixture(scope="module")
def pretrained(unlabelled, tmp_path_factory):
    """A pretraining run of Model 2, and its metrics."""
    workdir = tmp_path_factory.mktemp("pretrained") / "with_pictures"
    return workdir, train.train(experiment("", **unlabelled, **MASKED), workdir)


def test_resumed_pretraining_equals_uninterrupted_one_to_the_bit(unlabelled, pretrained, tmp_path):
    whole, metrics = pretrained
    run = experiment("", **unlabelled, **MASKED)
    with killed_after(STEPS // 2), pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path)
    assert train.train(run, tmp_path) == metrics
    program = run.train_program({}, sharding.make_mesh())
    states = []
    for workdir in (whole, tmp_path):
        with checkpointing.Checkpoints(checkpointing.locate(workdir)[0], read_only=True) as checkpoints:
            states.append(checkpoints.restore(program.state, STEPS)[0])
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert not jax.tree.all(jax.tree.map(np.array_equal, states[0].params, program.init_state(0).params))


def test_pretraining_is_evaluated_and_shown(unlabelled, pretrained):
    workdir, metrics = pretrained
    assert set(metrics) == {"loss"}
    run = experiment("", **unlabelled, **MASKED, evaluation__batch_size=16)
    result = evaluate.evaluate(run, workdir)
    assert result.scalars == pytest.approx(metrics, rel=1e-5), "the masks depend on the videos, not on the batch"
    assert "masked loss" in result.summary()
    assert (workdir / "pictures" / "reconstructions.png").exists()
    assert "masked and reconstructed clips" in (workdir / "report.html").read_text()
    with pytest.raises(checkpointing.CheckpointError, match="without a classifier"):
        predict.Predictor(workdir)
    (video,) = features.extract(
        predict.Predictor(workdir, classifier=False), [f"{unlabelled['data__video_dir']}/0.mp4"]
    )
    assert video.endswith("0.mp4")


def test_pretrained_encoder_starts_a_classifier(data_dir, unlabelled, pretrained, tmp_path):
    workdir, _ = pretrained
    setup = set_up(experiment(data_dir, init_from__path=str(workdir)), tmp_path)
    state = initialize.init_from_weights(setup, tmp_path)
    run = experiment("", **unlabelled, **MASKED)
    _, params, *_ = evaluate.restore_for_inference(workdir, sharding.make_mesh())
    assert set(params) == {"tokenizer", "spatial_encoder", "decoder"}
    for name in ("tokenizer", "spatial_encoder"):
        jax.tree.map(np.testing.assert_array_equal, state.params[name], params[name])
    encoder, restored, *_ = evaluate.restore_for_inference(workdir, sharding.make_mesh(), encoder=True)
    assert (type(encoder), set(restored)) == (ViViT, {"tokenizer", "spatial_encoder"})
    report = (tmp_path / REPORT_FILE).read_text()

    # Converted, it is that encoder alone.
    config, flat = encoder.config, jax.device_get(restored)
    convert.save_params(flat, tmp_path / "encoder", "orbax", config, record=run.to_dict())
    _, converted, *_ = evaluate.restore_for_inference(tmp_path / "encoder", sharding.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, converted, restored)
    assert not re.search(r"(tokenizer|spatial_encoder)/.*initialised|initialised.*(tokenizer|spatial_encoder)/", report)

    # Pretraining goes on from it with a new decoder.
    again = set_up(dataclasses.replace(run, init_from=setup.experiment.init_from), tmp_path)
    state = initialize.init_from_weights(again, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state.params["spatial_encoder"], params["spatial_encoder"])
    assert set(state.params) == set(params)


def test_classifier_on_videos_without_labels_is_refused(unlabelled, tmp_path):
    with pytest.raises(ConfigError, match=r"the videos of mine have no labels: .* config.pretrain.mask_ratio=0.9"):
        set_up(experiment("", **unlabelled), tmp_path)


def test_settings_that_do_not_fit_are_refused(data_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"set augment.mixup and augment.cutmix to 0"):
        experiment(data_dir, **MASKED, augment__mixup=0.3)
    with pytest.raises(ValueError, match=r"pretrain.mask_ratio=0.01 masks none of the 16 patches"):
        set_up(experiment(data_dir, **MASKED | {"pretrain__mask_ratio": 0.01}), tmp_path)
    with pytest.raises(ConfigError, match=r"best_metric='action/top1' is not measured"):
        set_up(experiment(data_dir, **MASKED | {"checkpoint__best_metric": "action/top1"}), tmp_path)
    run = experiment(data_dir, **MASKED)
    assert Experiment.from_config(run.to_dict()) == run
