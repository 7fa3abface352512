"""Sharding rules for parameters and optimizer state, as a table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vivit_jax.utils.trees import path_name

Rules = Sequence[tuple[str, tuple[str, ...]]]

# (path regex, names of the last dimensions): the first match applies. The leading axis of stacked layers has no name
# and is never split: every device needs every layer. Parameters that only the last row matches are small and copied.
RULES: Rules = (
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
# that each pair needs one all-reduce.
TENSOR = frozenset({"heads", "mlp"})
# FSDP splits the largest of these dimensions that it divides: over 256 devices, d = 768 would leave 3 columns each.
FSDP = frozenset({"width", "mlp", "positions", "outputs", "head_dim"})


def state_sharding(mesh: Mesh, abstract: Any, rules: Rules = RULES) -> Any:
    """Returns the sharding of each leaf of a train state or parameter tree, by the first rule that matches its path.

    The optimizer's moments and the averaged parameters (EMA) have paths that end as the parameters' do, and so get the
    same shardings. `abstract` is a tree of arrays or `jax.ShapeDtypeStruct`.
    """

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, dimensions in rules:
            if re.search(pattern, name):
                # FSDP of biases would cost more communication than it saves memory.
                sizes = {**mesh.shape, "fsdp": 1} if name.endswith("bias") else mesh.shape
                return NamedSharding(mesh, _spec(sizes, leaf.shape, dimensions))
        raise ValueError(f"no sharding rule matches {name} {leaf.shape}; add one to the table")

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Returns `jax.ShapeDtypeStruct`s with the shapes and dtypes of a tree and the given shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _spec(mesh_sizes: Mapping[str, int], shape: Sequence[int], names: Sequence[str]) -> P:
    """The spec of one leaf. Dimensions that do not divide are not split, nor is a leaf with fewer dimensions than names
    (row or column statistics of an optimizer)."""
    unnamed = len(shape) - len(names)
    if unnamed < 0:
        return P()
    axes: list[tuple[str, ...]] = [()] * len(shape)
    sizes = list(shape)  # of one shard
    named = [(unnamed + i, name) for i, name in enumerate(names)]
    for i, name in named:
        if name in TENSOR and mesh_sizes["tensor"] > 1 and sizes[i] % mesh_sizes["tensor"] == 0:
            axes[i], sizes[i] = ("tensor",), sizes[i] // mesh_sizes["tensor"]
            break
    divisible = [i for i, name in named if name in FSDP and sizes[i] % mesh_sizes["fsdp"] == 0]
    if mesh_sizes["fsdp"] > 1 and divisible:
        i = max(divisible, key=lambda i: (sizes[i], not axes[i]))
        axes[i] = (*axes[i], "fsdp")
    while axes and not axes[-1]:
        axes.pop()
    return P(*(a[0] if len(a) == 1 else (a or None) for a in axes))
