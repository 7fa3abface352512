"""Configs of older versions are read under the current names and values."""

import pytest

from vivit_jax.augment import AugmentConfig
from vivit_jax.config import fields
from vivit_jax.config.experiment import ConfigError, Experiment, default_config
from vivit_jax.config.fields import flat, plain

OLD = {
    "augment": {"colour_jitter": 0.5, "greyscale": 0.1, "erase": 0.25, "rand_augment_ops": "published"},
    "input": {"flip": 0.5, "stride": 2},
    "data": {"videos": "mine", "service": None, "unknown_classes": "refuse", "subset": {"list": "ids.txt"}},
    "evaluation": {"videos": 8},
    "init_from": {"head": "by_name", "pre_logits": "follow"},
    "loss": {"kind": "sigmoid"},
    "optimizer": {"schedule": "rsqrt", "timescale": 100.0, "schedule_factor": 0.1},
}
NOW = {
    "augment": {
        "colour_jitter_probability": 0.5, "grayscale_probability": 0.1, "erase_probability": 0.25,
        "rand_augment_ops": "paper",
    },
    "input": {"flip_probability": 0.5, "stride": 2},
    "data": {"video_dir": "mine", "unknown_classes": "error", "subset": {"list_file": "ids.txt"}},
    "evaluation": {"num_videos": 8},
    "init_from": {"head": "match", "pre_logits": "load"},
    "loss": {"name": "sigmoid"},
    "optimizer": {"schedule": "rsqrt", "rsqrt_timescale": 100.0, "step_decay_factor": 0.1},
}  # fmt: skip


def test_old_names_and_values_are_read():
    assert Experiment.from_config(OLD) == Experiment.from_config(NOW)


def test_removed_fields_must_have_their_constant():
    augment = {"erase_probability": 0.5, "erase_count": 1, "erase_area": [0.02, 0.4]}
    assert Experiment.from_config({"augment": augment}).augment == AugmentConfig(erase_probability=0.5)
    with pytest.raises(ConfigError, match=r"config\.augment\.erase_count=3 is no longer a field: it is always 1"):
        Experiment.from_config({"augment": augment | {"erase_count": 3}})
    assert Experiment.from_config({"data": {"service_address": None}}) == Experiment.from_config({})
    for pooled in (True, None):  # None: by the default of that time
        assert Experiment.from_config({"model": {"frame_pooling": pooled}}) == Experiment.from_config({})
    with pytest.raises(ConfigError, match=r"config\.data\.service_address='grpc://a:1' is no longer a field"):
        Experiment.from_config({"data": {"service_address": "grpc://a:1"}})


def test_every_new_name_exists():
    assert {*fields.RENAMED.values(), *fields.RENAMED_VALUES} <= set(flat(plain(default_config())))
    assert not set(fields.REMOVED) & set(flat(plain(default_config())))


def test_old_config_file_sets_new_fields():
    config = default_config()
    config.data.videos = "mine"
    config.init_from.head = "new"
    run = Experiment.from_config(config)
    assert (run.data.video_dir, run.init_from.head) == ("mine", "reinit")
    config.data.video_dir = "other"
    with pytest.raises(ConfigError, match=r"config\.data\.videos is now called config\.data\.video_dir"):
        Experiment.from_config(config)
