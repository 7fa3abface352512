"""Trees of arrays and of JSON values: leaf names, non-finite numbers."""

import math
from collections.abc import Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a key path of `jax.tree_util` as 'encoder/layers/mlp/dense_in/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def finite_or_none(value: Any) -> Any:
    """Replaces non-finite floats, for which JSON has no number, by None; mappings and sequences are searched."""
    if isinstance(value, Mapping):
        return {name: finite_or_none(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
