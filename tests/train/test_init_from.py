"""Training from pretrained weights (`config.init_from`); the command line of convert."""

import json
import shutil
import subprocess
import sys
import types

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.helpers.experiment import experiment
from tests.helpers.small_models import random_params
from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding, train
from vivit_jax.config.experiment import CONFIG_FILE, ConfigError, Experiment
from vivit_jax.config.sections import IMAGE_MODEL_FOLDER, REPORT_FILE
from vivit_jax.evaluation import evaluate
from vivit_jax.models import ViViTConfig, abstract_params
from vivit_jax.models.config import ATTENTIONS
from vivit_jax.train import initialize
from vivit_jax.train.setup import inherit_model_fields

HEADS = {"verb": 8, "noun": 10}
FIELDS = {"hidden_size": 24, "num_layers": 2, "mlp_dim": 32, "num_heads": 3, "tubelet_size": (1, 14, 14)}


@pytest.fixture(scope="module")
def image_vit(tmp_path_factory):
    """A folder of Hugging Face with an image ViT: exact GELU, another epsilon, smaller pictures."""
    image = {"tokenizer": "uniform_frames", "num_frames": 1, "image_size": 42, "num_classes": 7}
    config = ViViTConfig(**FIELDS, **image, activation="gelu", layer_norm_eps=1e-5)
    folder = tmp_path_factory.mktemp("weights") / "vit"
    convert.save_params(random_params(config, dtype=np.float32), folder, "huggingface", config)
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_image_model_is_trained_once_and_first(data_dir, tmp_path):
    run = experiment(data_dir, num_steps=2, init_from__image_epochs=1.5, optimizer__warmup_epochs=0.0)
    whole = train.train(run, tmp_path / "whole")
    report = (tmp_path / "whole" / REPORT_FILE).read_text()
    assert "central frame (eq. 9) from 1 frames to 4 frames" in report
    assert f"{IMAGE_MODEL_FOLDER}/checkpoints/1" in report, "30 frames, of which a step takes 8 x 2"
    # Interrupted when the image model was done.
    parts = tmp_path / "parts"
    train.train(run.image_experiment(), parts / IMAGE_MODEL_FOLDER)
    assert train.train(run, parts) == whole
    # The started run no longer needs it.
    shutil.rmtree(parts / IMAGE_MODEL_FOLDER)
    assert train.train(run, parts) == pytest.approx(whole)
    assert not (parts / IMAGE_MODEL_FOLDER).exists()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("classifier", [None, "gap"])
def test_image_model_initialises_every_model(data_dir, attention, classifier):
    changes = {"model__attention": attention, "model__classifier": classifier, "model__num_heads": 2}
    run = experiment(data_dir, init_from__image_epochs=3.0, optimizer__warmup_epochs=20.0, **changes)
    image, video = run.image_experiment(), run.model_config(HEADS)
    config = image.model_config(HEADS)
    assert (config.grid, config.tubelet_size) == ((1, 4, 4), (1, 14, 14))
    assert (image.batch_size, image.total_steps(20), image.init_from.image_epochs) == (16, 3, 0)
    assert image.optimizer.warmup_epochs == pytest.approx(0.3), "not that of the longer run on videos"
    params, report = convert.adapt(random_params(config, dtype=np.float32), config, video, run.init_from)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, abstract_params(video))
    assert {entry.name for entry in report.entries if entry.outcome == "resized"} >= {"tokenizer/kernel"}


@pytest.mark.slow
@pytest.mark.long
def test_run_from_pretrained_weights_resumes_without_them(data_dir, image_vit, tmp_path):
    run = experiment(data_dir, num_steps=1, optimizer__warmup_epochs=0.0, init_from__path=str(image_vit))
    metrics = train.train(run, tmp_path / "w")
    report = (tmp_path / "w" / REPORT_FILE).read_text()
    assert "resized     spatial_encoder/position_embedding" in report
    assert "from 3 x 3 to 4 x 4" in report
    saved = json.loads((tmp_path / "w" / CONFIG_FILE).read_text())["model"]
    assert (saved["activation"], saved["layer_norm_eps"]) == ("gelu", 1e-5)
    # The resumed run needs neither the weights nor their activation.
    plain = experiment(data_dir, num_steps=1, optimizer__warmup_epochs=0.0)
    assert train.train(plain, tmp_path / "w") == pytest.approx(metrics)
    again = evaluate.evaluate(plain, tmp_path / "w")
    assert again.scalars == pytest.approx(metrics, abs=1e-6)
    # The checkpoint in turn initialises another model, which inherits its activation.
    options = convert.InitFrom(head="keep", embedding="random")
    other = ViViTConfig(**{**FIELDS, "tubelet_size": (2, 14, 14)}, num_frames=4, image_size=56, num_classes=HEADS)
    assert convert.initialise(tmp_path / "w", other, options).config.activation == "gelu"
    # Classes of its heads are matched by name.
    _, stored = convert.load_model(tmp_path / "w")
    with checkpointing.Checkpoints(tmp_path / "w" / "checkpoints", read_only=True) as checkpoints:
        names = checkpoints.latest_metadata()["class_names"]
    ours = {"verb": names["verb"][::-1], "noun": [f"other {name}" for name in names["noun"]]}
    params = convert.initialise(tmp_path / "w", other, convert.InitFrom(embedding="random"), class_names=ours).params
    assert stored["head_noun"]["kernel"].any()
    assert not params["head_noun"]["kernel"].any()
    np.testing.assert_array_equal(params["head_verb"]["kernel"], stored["head_verb"]["kernel"][:, ::-1])


def test_first_state_holds_the_pretrained_weights(data_dir, image_vit, tmp_path):
    run = experiment(data_dir, init_from__path=str(image_vit))
    run = inherit_model_fields(run, HEADS, None)
    mesh = sharding.make_mesh()
    program = run.train_program(HEADS, mesh, total_steps=6, steps_per_epoch=2)
    model = program.model
    assert (model.config.activation, model.config.layer_norm_eps) == ("gelu", 1e-5)
    with jax.set_mesh(mesh):
        data = types.SimpleNamespace(class_names=None)
        setup = types.SimpleNamespace(experiment=run, program=program, train_set=data)
        state = initialize.init_from_weights(setup, tmp_path)
        scratch = program.init_state(run.seed)
    expected = convert.initialise(image_vit, model.config, run.init_from, seed=run.seed).params
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.sharding, y.sharding), state, scratch)
    # Parameters that the weights lack are the random ones.
    fresh = flax.traverse_util.flatten_dict(state.params["temporal_encoder"])
    for name, leaf in flax.traverse_util.flatten_dict(scratch.params["temporal_encoder"]).items():
        np.testing.assert_array_equal(fresh[name], leaf)


def test_config_that_contradicts_the_weights_is_refused(data_dir, image_vit):
    run = experiment(data_dir, init_from__path=str(image_vit), model__activation="gelu_tanh")
    with pytest.raises(ConfigError, match=r"model\.activation='gelu_tanh', but the weights in .* with 'gelu'"):
        inherit_model_fields(run, HEADS, None)
    with pytest.raises(ConfigError, match=r"init_from\.head='old' is not known; choose one of match, reinit, keep"):
        experiment(data_dir, init_from__head="old")
    with pytest.raises(FileNotFoundError, match="no weights at nowhere"):
        inherit_model_fields(experiment(data_dir, init_from__path="nowhere"), HEADS, None)
    recorded = Experiment.from_config({"model": {"activation": "gelu"}}).to_dict()
    assert inherit_model_fields(run, HEADS, {"config": recorded}).model["activation"] == "gelu_tanh"


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vivit_jax.convert", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_convert_command_line(image_vit, tmp_path):
    shown = command(f"--from={image_vit}")
    assert shown.returncode == 0, shown.stderr
    assert "huggingface weights in a container of kind safetensors" in shown.stdout
    assert "activation gelu, LayerNorm epsilon 1e-05" in shown.stdout
    wrong = command(f"--from={image_vit}", f"--to={tmp_path / 'out'}", "--format=scenic")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: scenic cannot express this model")
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "out").exists()
    written = command(
        f"--from={image_vit}",
        f"--to={tmp_path / 'run'}",
        "--format=orbax",
        "--config=configs/moving_digits.py",
        *(
            f"--config.model.{name}={value}".replace(" ", "")
            for name, value in FIELDS.items()
            if name != "tubelet_size"
        ),
    )
    assert written.returncode == 0, written.stderr
    assert "central frame (eq. 9) from an image to 8 frames" in written.stdout
    config, params = convert.load_model(tmp_path / "run")
    assert (config.activation, config.num_classes) == ("gelu", (("verb", 8), ("noun", 10)))
    assert params["tokenizer"]["kernel"].shape == (8, 14, 14, 3, 24)
