"""Configs written by older versions: old field names and values, and what they are called now.

Config files, checkpoints and `config.json` of older runs keep working: `Experiment.from_config` calls `upgrade`.
"""

import copy
from collections.abc import Mapping
from typing import Any

# old name -> new name, both in the same group
FIELDS: Mapping[str, str] = {
    "augment.colour_jitter": "augment.colour_jitter_probability",
    "augment.greyscale": "augment.grayscale_probability",
    "augment.erase": "augment.erase_probability",
    "input.flip": "input.flip_probability",
    "data.videos": "data.video_dir",
    "data.subset.list": "data.subset.list_file",
    "evaluation.videos": "evaluation.num_videos",
    "loss.kind": "loss.name",
    "optimizer.timescale": "optimizer.rsqrt_timescale",
    "optimizer.schedule_factor": "optimizer.step_decay_factor",
}

# field (by its new name) -> {old value: new value}
VALUES: Mapping[str, Mapping[str, str]] = {
    "augment.rand_augment_ops": {"published": "paper"},
    "data.unknown_classes": {"refuse": "error"},
    "init_from.head": {"by_name": "match", "new": "reinit"},
    "init_from.pre_logits": {"follow": "load"},
}

# fields that no longer exist: name -> the value that they always have now, as had those that are None
REMOVED: Mapping[str, Any] = {
    "augment.erase_area": [0.02, 0.4],
    "augment.erase_aspect": 0.3,
    "augment.erase_count": 1,
    "augment.erase_fill": "noise",
    "augment.switch_probability": 0.5,
    "data.service": None,
    "data.service_address": None,
    "model.frame_pooling": True,
}


def upgrade(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict `config` of an older version with the current names and values; `defaults` has them all.

    Raises ValueError where a field has different values under both names, or a removed one has another value than now.
    """
    config = copy.deepcopy(dict(config))
    for old, new in FIELDS.items():
        group, name, new_name = _group(config, old), old.rpartition(".")[2], new.rpartition(".")[2]
        if name not in group:
            continue
        value = group.pop(name)
        # A config file that starts from `default_config()` has the new name with its default, too.
        if group.get(new_name, value) not in (value, _group(defaults, new)[new_name]):
            raise ValueError(f"config.{old} is now called config.{new}; give the new name only")
        group[new_name] = value
    for field, values in VALUES.items():
        group, name = _group(config, field), field.rpartition(".")[2]
        if isinstance(group.get(name), str):
            group[name] = values.get(group[name], group[name])
    for field, constant in REMOVED.items():
        value = _group(config, field).pop(field.rpartition(".")[2], constant)
        if value not in (constant, None):
            raise ValueError(f"config.{field}={value!r} is no longer a field: it is always {constant!r}")
    return config


def _group(config: Any, field: str) -> dict[str, Any]:
    """Returns the group that holds the field; {} where there is none."""
    for part in field.split(".")[:-1]:
        config = config.get(part) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else {}
