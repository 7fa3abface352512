"""Names of the leaves of a tree."""

from __future__ import annotations

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as 'encoder/layers/mlp/dense_in/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
