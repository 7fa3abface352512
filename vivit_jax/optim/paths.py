"""Masks of parameters by regular expressions over their paths."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vivit_jax.utils.trees import path_name


def path_mask(pattern: str) -> Callable[[Any], Any]:
    """Returns a function from a tree to a tree of bools: whether the pattern is found in the leaf's path."""
    regex = re.compile(pattern)
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(regex.search(path_name(path))), tree)


def trained_mask(frozen: Sequence[str]) -> Callable[[Any], Any]:
    """Returns a function from parameters to a tree of bools: False where a pattern of `frozen` is found in the path.

    It raises ValueError if one of the patterns is found in no path, or if no parameter is trained.
    """

    def mask(params: Any) -> Any:
        for pattern in frozen:
            check_found(pattern, params, "optimizer.frozen")
        masks = [path_mask(pattern)(params) for pattern in frozen]
        trained = jax.tree.map(lambda _, *is_frozen: not any(is_frozen), params, *masks)
        if not any(jax.tree.leaves(trained)):
            raise ValueError(f"optimizer.frozen={tuple(frozen)} leaves nothing to train; {_paths(params)}")
        return trained

    return mask


def check_found(pattern: str, params: Any, field: str) -> None:
    """Raises ValueError if the pattern of a config field is found in no parameter's path."""
    if not any(jax.tree.leaves(path_mask(pattern)(params))):
        raise ValueError(f"{field}={pattern!r} is found in no parameter's path; {_paths(params)}")


def _paths(params: Any) -> str:
    paths = (path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    return f"the parameters: {', '.join(paths)}"
