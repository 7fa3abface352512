"""Sharding of activations by the logical axes of their dimensions; without a mesh every function is the identity.

Not `flax.linen.with_logical_constraint`, which has no counterpart for `shard_map` and splits also dimensions that are
shorter than the number of devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vivit_jax.sharding.mesh import BATCH

LogicalAxes = Sequence[str | None]  # one name for each dimension of an array; None is not split

# Logical axis -> mesh axes that split it. `space` is used only during attention over time: whole columns of frames
# must then be on one device, so the `sequence` axis splits the positions within a frame instead of the frames.
LOGICAL_AXES = {
    "batch": BATCH,
    "tokens": ("sequence",),
    "time": ("sequence",),
    "space": ("sequence",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}


def num_shards(logical_axis: str) -> int:
    """Returns the number of devices that the current mesh splits a logical axis over; 1 without a mesh."""
    return math.prod(_mesh_axes().get(axis, 1) for axis in LOGICAL_AXES[logical_axis])


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Constrains the sharding of an array to that of its logical axes on the current mesh: one name per dimension.

    The compiler pads a dimension that the number of devices does not divide. A dimension shorter than that number is
    not split.
    """
    axes = _split(x.shape, logical_axes)
    return jax.lax.with_sharding_constraint(x, P(*axes)) if any(axes) else x


def shard_map_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs `function` on each device with that device's rows of the batch.

    For loops over examples, for which the partitioner would gather the batch on every device. To be called inside
    `jax.jit`. All arguments and results are arrays [B, ...], and `function` must treat their rows independently.
    """

    def sharded(*arrays: Any) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*arrays)
        return jax.shard_map(function, in_specs=P(BATCH), out_specs=P(BATCH))(*arrays)

    return sharded


def shard_map_logical(
    function: Callable[..., jax.Array], arguments: Sequence[LogicalAxes], result: LogicalAxes
) -> Callable[..., jax.Array]:
    """Returns a function that runs `function` on each device with that device's part of every named dimension.

    For loops and kernels, which the partitioner cannot split. `function` must treat the named dimensions as
    independent. Dimensions that the number of devices does not divide are padded with zeros; the result is cut to size.
    `arguments` are the logical axes of each argument, `result` those of the one result, each an axis of an argument.
    """

    def sharded(*arrays: jax.Array) -> jax.Array:
        splits = [_split(x.shape, names) for x, names in zip(arrays, arguments, strict=True)]
        mesh_axes, sizes, split_of, padded = _mesh_axes(), {}, {}, []
        if math.prod(mesh_axes.values()) == 1:
            return function(*arrays)
        for x, names, split in zip(arrays, arguments, splits, strict=True):
            shards = [math.prod(mesh_axes[axis] for axis in axes) for axes in split]
            padded.append(jnp.pad(x, [(0, -size % n) for size, n in zip(x.shape, shards, strict=True)]))
            sizes |= dict(zip(names, x.shape, strict=True))
            split_of |= dict(zip(names, split, strict=True))
        in_specs = tuple(P(*split) for split in splits)
        out_specs = P(*(split_of[name] if name else None for name in result))
        # Kernels do not say over which axes their results vary, so jax cannot check it.
        out = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*padded)
        return out[tuple(slice(sizes[name]) if name else slice(None) for name in result)]

    return sharded


def _mesh_axes() -> dict[str, int]:
    """Sizes of the current mesh's axes that the partitioner controls: not those of an enclosing shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}


def _split(shape: Sequence[int], logical_axes: LogicalAxes) -> list[tuple[str, ...]]:
    """For each dimension the mesh axes that split it; () where it is shorter than the number of devices."""
    mesh_axes, split = _mesh_axes(), []
    for size, name in zip(shape, logical_axes, strict=True):
        axes = tuple(axis for axis in LOGICAL_AXES[name] if mesh_axes.get(axis, 1) > 1) if name else ()
        split.append(axes if size >= math.prod(mesh_axes[axis] for axis in axes) else ())
    return split
