"""Parameters by the names of their paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vivit_jax.utils.trees import path_name


def path_mask(pattern: str) -> Callable[[Any], Any]:
    """A function from a tree to a tree of bools: whether the leaf's path matches the regular expression."""
    regex = re.compile(pattern)
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(regex.search(path_name(path))), tree)


def trained_mask(frozen: Sequence[str]) -> Callable[[Any], Any]:
    """A function from parameters to a tree of bools: whether the leaf is trained.

    Args:
      frozen: regular expressions; what one of them is found in is not trained. None: all is.

    Returns:
      The function. It raises ValueError, with the paths there are, where an expression is found in no path, and where
      nothing is left to train.
    """
    regexes = [re.compile(pattern) for pattern in frozen]

    def mask(params: Any) -> Any:
        for regex in regexes:
            check_found(regex.pattern, params, "optimizer.frozen")
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: not any(regex.search(path_name(path)) for regex in regexes), params
        )
        if not any(jax.tree.leaves(found)):
            raise ValueError(
                f"optimizer.frozen={tuple(frozen)} leaves nothing to train; the parameters: {_all(params)}"
            )
        return found

    return mask


def check_found(pattern: str, params: Any, field: str) -> None:
    """Raises ValueError, with the paths there are, where the regular expression of a field is found in none."""
    if not any(jax.tree.leaves(path_mask(pattern)(params))):
        raise ValueError(f"{field}={pattern!r} is found in no parameter's path; the parameters: {_all(params)}")


def _all(params: Any) -> str:
    return ", ".join(path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
