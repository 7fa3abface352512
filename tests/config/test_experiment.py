"""Checks of config fields, JSON round trips, and errors on the command line."""

import json
import subprocess
import sys

import pytest
from ml_collections import config_dict

from tests.conftest import REPOSITORY
from tests.helpers.experiment import config_file
from vivit_jax.config.experiment import ConfigError, Experiment, default_config

CONFIGS = sorted(p.stem for p in (REPOSITORY / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_survives_json(name):
    run = Experiment.from_config(config_file(name))
    again = Experiment.from_config(json.loads(json.dumps(run.to_dict())))
    heads = {"verb": 8, "noun": 10}
    assert again.to_dict() == run.to_dict()
    assert again.model_config(heads) == run.model_config(heads)
    assert again.clip_spec(run.model_config(heads)) == run.clip_spec(run.model_config(heads))


def test_kinetics_config_matches_paper():
    run = Experiment.from_config(config_file("k400_vivit_l"))
    model = run.model_config({"label": 400})
    assert (model.name, model.num_layers, model.hidden_size) == ("ViViT-L/16x2", 24, 1024)
    assert (model.attention, model.num_frames, model.image_shape) == ("spatiotemporal", 32, (224, 224))
    assert (run.optimizer.name, run.optimizer.learning_rate, run.batch_size) == ("sgd", 0.1, 64)
    assert run.total_steps(240_258) == 30 * 240_258 // 64


def test_fields_that_contradict_each_other_are_refused():
    config = default_config()
    config.batch_size, config.optimizer.accumulate_steps = 8, 3
    with pytest.raises(ConfigError, match=r"batch_size=8 does not divide into optimizer\.accumulate_steps=3"):
        Experiment.from_config(config)
    config.optimizer.accumulate_steps, config.model.in_channels = 1, 1
    run = Experiment.from_config(config)
    with pytest.raises(ConfigError, match=r"videos have 3 channels, but config\.model\.in_channels=1"):
        run.clip_spec(run.model_config({"label": 3}))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("batchsize", 4, r"config.batchsize does not exist; did you mean config.batch_size\?"),
        ("optimizer.lr", 0.1, "config.optimizer.lr does not exist; fields of config.optimizer: accumulate_steps, b1"),
        ("model.hidden", 4, "config.model.hidden does not exist"),
        ("evaluation.spatial_views", 4, "spatial_views=4 is not known; choose one of 1, 2, 3"),
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("num_epochs", 0.0, r"num_epochs=0.0 must lie in \(0, inf\)"),
        ("label_smoothing", 1.0, r"label_smoothing=1.0 must lie in \[0, 1\)"),
        ("optimizer.name", "adam", "choose one of sgd, adamw, lamb, lion"),
        ("log_every_steps", None, "config.log_every_steps=None must have a value; its default is 50"),
        ("checkpoint.every_steps", None, "config.checkpoint.every_steps=None must have a value; its default is 1000"),
    ],
)
def test_invalid_field_is_named_in_the_error(path, value, says):
    config = config_dict.ConfigDict(default_config().to_dict())
    *groups, field = path.split(".")
    section = config
    for group in groups:
        section = section[group]
    section[field] = value
    with pytest.raises(ConfigError, match=says):
        Experiment.from_config(config)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("image_size", 72, "image_size's height=72 is not divided by tubelet_size's height=14"),
        ("num_heads", 5, "num_heads=5 does not divide hidden_size=96"),
        ("name", "ViViT-Q/16x2", "'ViViT-Q/16x2' is not a model's name"),
    ],
)
def test_invalid_model_field_is_named_in_the_error(field, value, says):
    config = config_file("moving_digits")
    config.model[field] = value
    with pytest.raises(ConfigError, match=says):
        Experiment.from_config(config).model_config({"label": 8})


def test_model_3_rejects_a_class_token():
    config = config_file("moving_digits")
    config.model.attention, config.model.classifier = "factorised_self_attention", "token"
    with pytest.raises(ConfigError, match="Model 3 has no class token"):
        Experiment.from_config(config).model_config({"label": 8})


def run_main(*flags, cwd=REPOSITORY):
    return subprocess.run(
        [sys.executable, "-m", "vivit_jax.main", *flags], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def test_missing_kinetics_ends_in_directions(tmp_path):
    done = run_main(
        "--config=configs/k400_vivit_l.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={tmp_path / 'records'}",
        "--config.batch_size=16",
        "--config.model.image_size=320",
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr[done.stderr.index("error:") :]
    assert str(tmp_path / "records" / "kinetics400") in last  # where it looked
    assert "{id}_{start:06d}_{end:06d}.mp4" in last  # what it expects
    assert "cvdfoundation" in last  # how to get it


def test_unknown_field_on_the_command_line_is_rejected(tmp_path):
    done = run_main("--config=configs/moving_digits.py", f"--workdir={tmp_path}", "--config.batchsize=16")
    assert done.returncode != 0
    assert "batchsize" in done.stderr
    assert "batch_size" in done.stderr


def test_data_options_are_checked():
    config = default_config()
    config.data.mixture = {"kinetics400": 3, "kinetics600": 1.0}
    config.data.subset.update(classes=("juggling balls",), fraction=0.5)
    config.input.update(sampling="segments", clips_per_video=2)
    run = Experiment.from_config(config)
    assert Experiment.from_config(json.loads(json.dumps(run.to_dict()))) == run
    assert dict(run.data.mixture) == {"kinetics400": 3, "kinetics600": 1.0}
    assert (run.data.subset.classes, run.data.subset.fraction) == (("juggling balls",), 0.5)
    assert run.steps_per_epoch(320) == 2 * 320 / run.batch_size
    assert run.total_steps(320) == int(run.num_epochs * 2 * 320 / run.batch_size)
    for change, says in (
        ({"mixture": {"a": 0.0}}, r"data.mixture\['a'\]=0.0 must be a number greater than 0"),
        ({"unknown_classes": "keep"}, "data.unknown_classes='keep' is not known; choose one of error, drop, union"),
        ({"subset": {"fraction": 1.5}}, r"subset.fraction=1.5 must lie in \(0, 1\]"),
        ({"subset": {"fractions": 0.5}}, r"data.subset.fractions does not exist; did you mean .*fraction\?"),
        ({"threads": 0}, "data.threads=0 must be at least 1"),
        ({"prefetch": 0}, "data.prefetch=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            Experiment.from_config({"data": change})


def test_mesh_gets_all_axes():
    whole = {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert dict(Experiment.from_config({}).mesh) == dict(Experiment.from_config({"mesh": {"data": -1}}).mesh) == whole
    assert dict(Experiment.from_config({"mesh": {"fsdp": -1}}).mesh) == whole | {"data": 1, "fsdp": -1}
    assert dict(Experiment.from_config(default_config()).mesh) == whole


def test_heads_are_those_of_the_records(tmp_path):
    """`cost`, `compile` and `convert` build the model for these heads; UCF101 has 101 classes in the catalog."""
    config = default_config()
    config.data.update({"name": "ucf101", "dir": str(tmp_path)})
    assert Experiment.from_config(config).dataset_heads() == {"label": 101}
    folder = tmp_path / "ucf101" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "class_names.json").write_text('{"label": ["Archery", "Basketball"]}', encoding="utf-8")
    assert Experiment.from_config(config).dataset_heads() == {"label": 2}
