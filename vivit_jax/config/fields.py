"""Frozen dataclasses as ConfigDicts and back: typed fields with defaults, checked names, JSON-safe values.

Fields are named by dotted paths, 'optimizer.learning_rate'. Config files, checkpoints and `config.json` of older
versions keep working: `upgrade` replaces their names and values by those of today, by renamed.toml.
"""

import copy
import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

# Sections that take any field names: mesh axes, data sets, heads.
OPEN_SECTIONS = ("mesh", "data.mixture", "loss.head_weights")
_TABLES = tomllib.loads(Path(__file__).with_name("renamed.toml").read_text(encoding="utf-8"))
RENAMED: Mapping[str, str] = _TABLES["fields"]  # old name -> new name
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = _TABLES["values"]  # field (by its new name) -> {old value: new value}
# name of a field that no longer exists -> the value that it always has now, as had those that are None
REMOVED: Mapping[str, Any] = {name: None if value == "none" else value for name, value in _TABLES["removed"].items()}


class ConfigError(ValueError):
    """A config that cannot be run: an unknown field, a wrong type, a value out of range."""


def section(cls: type, without: tuple[str, ...] = (), all_optional: bool = False) -> ml_collections.ConfigDict:
    """Returns a dataclass as a ConfigDict; fields that are None (`all_optional`: all) are typed placeholders."""
    result, hints = ml_collections.ConfigDict(), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            result[field.name] = section(type(default))
        elif isinstance(default, Mapping):
            result[field.name] = ml_collections.ConfigDict(default)
        elif all_optional or default is None or default is dataclasses.MISSING:
            result[field.name] = config_dict.placeholder(_flag_type(hints[field.name]))
        else:
            result[field.name] = default
    return result


def _flag_type(hint: Any) -> type:
    """Returns the type of a flag: `int | None` -> int, `tuple[int, int]` -> tuple, `int | tuple[...]` -> object."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return _flag_type(options[0]) if len(options) == 1 else object
    return typing.get_origin(hint) or hint


def plain(value: Any) -> Any:
    """Returns nested mappings as dicts and tuples as lists, as JSON has them."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def tuples(value: Any) -> Any:
    """Returns nested lists as tuples, for frozen dataclasses."""
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every section and field, a section before its fields; open sections are not entered."""
    for name, value in tree.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping) and f"{prefix}{name}" not in OPEN_SECTIONS:
            yield from paths(value, f"{prefix}{name}.")


def merge(known: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `known` with the values of `given`, whose fields all exist; open sections are replaced as a whole."""
    return {
        name: merge(value, given.get(name, {}), f"{prefix}{name}.")
        if isinstance(value, Mapping) and f"{prefix}{name}" not in OPEN_SECTIONS
        else given.get(name, value)
        for name, value in known.items()
    }


def check_fields(given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises ConfigError where a field of `given` is not in `known`, or a value stands where a section belongs."""
    fields = dict(paths(known))
    for name, value in paths(given):
        check_exists(name, fields)
        if isinstance(fields[name], Mapping) and not isinstance(value, Mapping):
            raise ConfigError(f"config.{name}={value!r} must be a section with the fields {', '.join(fields[name])}")


def check_exists(name: str, known: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the new name or the nearest ones, unless `name` is among `known`, a config's `paths`."""
    if name in known:
        return
    if name in RENAMED:
        raise ConfigError(f"config.{name} is now called config.{RENAMED[name]}")
    if name in REMOVED:
        raise ConfigError(f"config.{name} is no longer a field: it is always {REMOVED[name]!r}")
    parent, _, leaf = name.rpartition(".")
    if parent in OPEN_SECTIONS:
        if leaf in (known.get(parent) or {}):
            return  # an entry that the config has
        whole = f"--config.{parent}=\"{{'{leaf}': VALUE}}\""
        raise ConfigError(f"config.{parent} has no {leaf!r} that can be set alone; set it as a whole: {whole}")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == parent]
    section_name = f"config.{parent}".rstrip(".")
    if elsewhere := [f"config.{other}" for other in known if other.rpartition(".")[2] == leaf]:
        hint = f"did you mean {' or '.join(elsewhere)}?"
    elif close := difflib.get_close_matches(leaf if siblings else name, siblings or known, n=1):
        hint = f"did you mean {section_name if siblings else 'config'}.{close[0]}?"
    else:
        hint = f"fields of {section_name if siblings else 'config'}: {', '.join(siblings or known)}"
    raise ConfigError(f"config.{name} does not exist; {hint}")


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: value} of the nested dicts of a config; an empty section is a value."""
    import flax.traverse_util  # here: --help needs no jax

    return flax.traverse_util.flatten_dict(dict(tree), is_leaf=lambda path, value: path and not value, sep=".")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], without: Collection[str] = ()) -> list[str]:
    """Returns 'path: BEFORE -> NOW' of each field in which two configs differ, except the paths in `without`."""
    was, is_ = flat(before), flat(now)
    names = [name for name in sorted(was | is_) if name not in without and was.get(name) != is_.get(name)]
    return [f"{name}: {was.get(name)} -> {is_.get(name)}" for name in names]


def upgrade(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict `config` of an older version with the current names and values; `defaults` has them all.

    Raises ValueError where a field has different values under both names, or a removed one has another value than now.
    """
    config = copy.deepcopy(dict(config))
    for old, new in RENAMED.items():
        (group, name), (group_now, new_name) = field_of(config, old), field_of(defaults, new)
        if name not in group:
            continue
        value = group.pop(name)
        # A config file that starts from `default_config()` has the new name with its default, too.
        if group.get(new_name, value) not in (value, group_now[new_name]):
            raise ValueError(f"config.{old} is now called config.{new}; give the new name only")
        group[new_name] = value
    for field, values in RENAMED_VALUES.items():
        group, name = field_of(config, field)
        if isinstance(group.get(name), str):
            group[name] = values.get(group[name], group[name])
    for field, constant in REMOVED.items():
        group, name = field_of(config, field)
        value = group.pop(name, constant)
        if value not in (constant, None):
            raise ValueError(f"config.{field}={value!r} is no longer a field: it is always {constant!r}")
    return config


def field_of(tree: Any, path: str) -> tuple[Any, str]:
    """Returns the section that holds a field, {} where there is none, and the field's name in it."""
    *sections, name = path.split(".")
    for section_name in sections:
        tree = tree.get(section_name) if hasattr(tree, "get") else None
    return tree if hasattr(tree, "get") else {}, name
