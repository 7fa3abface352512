"""The rules, as a table: which dimension of which parameter is split over which axis of the mesh."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vivit_jax.utils.trees import path_name

# (path regex, names of the last dimensions): the first match holds. The leading axis of stacked layers has no name: it
# is never split, for every device needs every layer. What no row but the last names is small, and whole everywhere.
RULES: Sequence[tuple[str, tuple[str, ...]]] = (
    (r"layers/attention\w*/(query|key|value)/kernel$", ("width", "heads", "head_dim")),
    (r"layers/attention\w*/(query|key|value)/bias$", ("heads", "head_dim")),
    (r"layers/attention\w*/out/kernel$", ("heads", "head_dim", "width")),
    (r"layers/mlp/dense_in/kernel$", ("width", "mlp")),
    (r"layers/mlp/dense_in/bias$", ("mlp",)),
    (r"layers/mlp/dense_out/kernel$", ("mlp", "width")),
    (r"position_embedding$", ("positions", "width")),
    (r"tokenizer/kernel$", ("width",)),
    (r"(pre_logits|head|head_\w+)/kernel$", ("width", "outputs")),
    (r".*", ()),
)
# Megatron-LM (arXiv:1909.08053, section 3): the first product of a pair is split by columns, the second by rows, so
# that one sum over the devices ends each pair.
TENSOR = frozenset({"heads", "mlp"})
# FSDP takes the largest of these dimensions that it divides: on 256 devices d = 768 would be 3 columns for each.
FSDP = frozenset({"width", "mlp", "positions", "outputs", "head_dim"})


def state_sharding(mesh: Mesh, abstract: Any, rules: Sequence[tuple[str, tuple[str, ...]]] = RULES) -> Any:
    """The sharding of each leaf of a state (or of parameters), by the first rule that matches its path.

    The optimizer's moments and the moving average of the parameters have paths that end as the parameters' do, and so
    lie as these do.

    Args:
      mesh: from `make_mesh`.
      abstract: a tree of arrays or `jax.ShapeDtypeStruct`, e.g. of `jax.eval_shape`.
      rules: (regular expression searched in the path 'params/encoder/...', names of the leaf's last dimensions).

    Raises:
      ValueError: a leaf matches no rule.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, dimensions in rules:
            if re.search(pattern, name):
                # Gathering vectors would cost more than their memory is worth.
                ways = {**mesh.shape, "fsdp": 1} if name.endswith("bias") else mesh.shape
                return NamedSharding(mesh, _spec(ways, leaf.shape, dimensions))
        raise ValueError(f"no sharding rule matches {name} {leaf.shape}; add one to the table")

    return jax.tree_util.tree_map_with_path(place, abstract)


def _spec(ways: Mapping[str, int], shape: Sequence[int], names: Sequence[str]) -> P:
    """The spec of one leaf. A dimension that does not divide stays whole; a leaf with fewer dimensions than names (an
    optimizer's statistic of rows or columns) too."""
    unnamed = len(shape) - len(names)
    if unnamed < 0:
        return P()
    axes: list[tuple[str, ...]] = [()] * len(shape)
    left = list(shape)
    named = [(unnamed + i, name) for i, name in enumerate(names)]
    for i, name in named:
        if name in TENSOR and ways["tensor"] > 1 and left[i] % ways["tensor"] == 0:
            axes[i], left[i] = ("tensor",), left[i] // ways["tensor"]
            break
    choices = [i for i, name in named if name in FSDP and left[i] % ways["fsdp"] == 0]
    if ways["fsdp"] > 1 and choices:
        i = max(choices, key=lambda i: (left[i], not axes[i]))
        axes[i] = (*axes[i], "fsdp")
    while axes and not axes[-1]:
        axes.pop()
    return P(*(a[0] if len(a) == 1 else (a or None) for a in axes))
