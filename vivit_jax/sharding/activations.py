"""Where activations lie: constraints that models state by the names of dimensions, and nothing without a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vivit_jax.sharding.mesh import BATCH

# Name of a dimension -> the axes of the mesh that split it. `space` is for the moment of attention over time, when
# whole columns of frames must meet on one device and the places of the frame are what is split.
DIMENSIONS = {
    "batch": BATCH,
    "tokens": ("sequence",),
    "time": ("sequence",),
    "space": ("sequence",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}


def ways(name: str) -> int:
    """Into how many parts the mesh in force splits a dimension of this name; 1 without a mesh."""
    return math.prod(_axes_now().get(axis, 1) for axis in DIMENSIONS[name])


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """`x`, laid over the mesh in force by the names of its dimensions; `x` itself without one.

    A dimension that the devices do not divide is padded by the compiler; one shorter than they are many stays whole.

    Args:
      x: any array.
      *names: for each dimension a name of `DIMENSIONS`, or None for whole.

    Raises:
      ValueError: not as many names as dimensions.
    """
    if len(names) != x.ndim:
        raise ValueError(f"{len(names)} names {names} for an array of {x.ndim} dimensions {x.shape}")
    axes = _axes_of(x.shape, names)
    return jax.lax.with_sharding_constraint(x, P(*axes)) if any(axes) else x


def on_own_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays [B, ...], run by each device on its own rows of the batch and nobody else's.

    For what the partitioner would only split by gathering first, as a loop over examples. Inside `jax.jit`, under
    `jax.set_mesh`; without a mesh it is `function` itself. The function must treat rows independently, and give arrays
    that again begin with the batch dimension.
    """

    def per_device(*arrays: Any) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*arrays)
        return jax.shard_map(function, in_specs=P(BATCH), out_specs=P(BATCH))(*arrays)

    return per_device


def on_own_shares(
    function: Callable[..., jax.Array], arguments: Sequence[Sequence[str | None]], result: Sequence[str | None]
) -> Callable[..., jax.Array]:
    """`function`, run by each device on its own share of every named dimension; for loops and kernels, which the
    partitioner cannot look into.

    The function must treat the named dimensions as independent. Dimensions that do not divide are padded with zeros,
    and the result is cut to size.

    Args:
      function: arrays -> one array.
      arguments: for each argument the names of its dimensions, see `constrain`.
      result: the names of the result's, each the name of some argument's dimension; these come to the same size.
    """

    def per_device(*arrays: jax.Array) -> jax.Array:
        axes = [_axes_of(x.shape, names) for x, names in zip(arrays, arguments, strict=True)]
        if not any(map(any, axes)):
            return function(*arrays)
        now, sizes, placed, padded = _axes_now(), {}, {}, []
        for x, names, split in zip(arrays, arguments, axes, strict=True):
            shares = [math.prod(now[axis] for axis in group) for group in split]
            padded.append(jnp.pad(x, [(0, -size % by) for size, by in zip(x.shape, shares, strict=True)]))
            sizes |= dict(zip(names, x.shape, strict=True))
            placed |= dict(zip(names, split, strict=True))
        in_specs = tuple(P(*split) for split in axes)
        out_specs = P(*(placed[name] if name else None for name in result))
        out = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs)(*padded)
        return out[tuple(slice(sizes[name]) if name else slice(None) for name in result)]

    return per_device


def _axes_now() -> dict[str, int]:
    """The axes of the mesh in force that the partitioner still has in hand: name -> devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in kinds if kind == AxisType.Auto}


def _axes_of(shape: Sequence[int], names: Sequence[str | None]) -> list[tuple[str, ...]]:
    """For each dimension the axes that split it, none where it is shorter than the devices are many."""
    now, found = _axes_now(), []
    for size, name in zip(shape, names, strict=True):
        axes = tuple(axis for axis in DIMENSIONS[name] if now.get(axis, 1) > 1) if name else ()
        found.append(axes if size >= math.prod(now[axis] for axis in axes) else ())
    return found
