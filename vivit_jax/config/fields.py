"""Frozen dataclasses as ConfigDicts and back: typed fields with defaults, checked names, JSON-safe values."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from flax import traverse_util
from ml_collections import config_dict

# Groups whose names are the user's own; those who read them know which there are (axes, data sets, heads).
FREE_GROUPS = ("config.mesh", "config.data.mixture", "config.loss.head_weights")


class ConfigError(ValueError):
    """A config that cannot be run: an unknown field, a wrong type, a value out of range."""


def section(cls: type, without: tuple[str, ...] = (), all_optional: bool = False) -> ml_collections.ConfigDict:
    """A dataclass's fields as a ConfigDict; those that default to None, or all, as placeholders of their type.

    Args:
      cls: a dataclass.
      without: names of fields to leave out.
      all_optional: every field is a placeholder.
    """
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
            result[field.name] = config_dict.placeholder(_concrete(hints[field.name]))
        else:
            result[field.name] = default
    return result


def _concrete(hint: Any) -> type:
    """The type to parse a flag with: `int | None` -> int, `tuple[int, int]` -> tuple, `int | tuple[...]` -> object."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return _concrete(options[0]) if len(options) == 1 else object
    return typing.get_origin(hint) or hint


def plain(value: Any) -> Any:
    """Nested mappings as dicts, tuples as lists: what JSON gives back."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def tuples(value: Any) -> Any:
    """Lists as tuples, nested ones too: what a frozen dataclass wants of JSON."""
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def merge(known: Mapping[str, Any], given: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """`known` with the values of `given`, which has no other fields. Groups of free names are taken whole."""
    return {
        key: merge(value, given.get(key, {}), f"{where}.{key}")
        if isinstance(value, dict) and f"{where}.{key}" not in FREE_GROUPS
        else given.get(key, value)
        for key, value in known.items()
    }


def check_fields(given: Mapping[str, Any], known: Mapping[str, Any], where: str = "config") -> None:
    """Checks that every field of `given` exists, groups and all.

    Raises:
      ConfigError: one that does not, with the nearest name; a value where a group belongs.
    """
    if where in FREE_GROUPS:
        return
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {where}.{close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}.{name} does not exist; {hint}")
        if isinstance(known[name], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{name}={value!r} must be a group of fields: {', '.join(known[name])}")
            check_fields(value, known[name], f"{where}.{name}")


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{'group.field': value} of the nested dicts of a config; an empty group is a value."""
    leaves = traverse_util.flatten_dict(dict(tree), sep=".", keep_empty_nodes=True)
    return {name: {} if value is traverse_util.empty_node else value for name, value in leaves.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], without: Collection[str] = ()) -> list[str]:
    """'group.field: BEFORE -> NOW' of each field in which two configs differ, but for the fields of `without`."""
    was, is_ = flat(before), flat(now)
    names = [name for name in sorted(was | is_) if name not in without and was.get(name) != is_.get(name)]
    return [f"{name}: {was.get(name)} -> {is_.get(name)}" for name in names]
