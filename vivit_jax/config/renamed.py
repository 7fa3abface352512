"""Configs written by older versions: old field names and values, and what they are called now: renamed.toml.

Config files, checkpoints and `config.json` of older runs keep working: `Experiment.from_config` calls `upgrade`.
"""

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
FIELDS: Mapping[str, str] = _TABLES["fields"]  # old name -> new name
VALUES: Mapping[str, Mapping[str, str]] = _TABLES["values"]  # field (by its new name) -> {old value: new value}
# name of a field that no longer exists -> the value that it always has now, as had those that are None
REMOVED: Mapping[str, Any] = {name: None if value == "none" else value for name, value in _TABLES["removed"].items()}


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
