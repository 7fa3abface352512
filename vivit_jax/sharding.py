"""The only room that knows meshes and partition specs: axes, rules, placement of batch and state.

One program runs on one device or on a pod: `jax.jit` over a named mesh. The batch is split over the `data` axis;
parameters and optimizer state follow `RULES`, a table from the path of a leaf to the mesh axes of its dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vivit_jax.optim import path_name

AXES = ("data",)
# (path regex, spec): the first match holds. Pure data parallelism: each device has a copy of everything.
RULES: Sequence[tuple[str, P]] = ((r".*", P()),)


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A named mesh over all devices.

    Args:
      axes: axis name -> devices along it; one may be -1, "all that are left". Default: {'data': -1}.
      devices: default, all devices of all processes.

    Raises:
      ValueError: an unknown axis, a size below 1 (other than one -1), or sizes whose product is not the device count.
    """
    devices = list(devices if devices is not None else jax.devices())
    axes = dict(axes or {"data": -1})
    unknown = set(axes) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axes {sorted(unknown)} are not known; known: {', '.join(AXES)}")
    free = [name for name, size in axes.items() if size == -1]
    fixed = int(np.prod([size for size in axes.values() if size != -1]))
    if len(free) > 1 or any(size < 1 and size != -1 for size in axes.values()):
        raise ValueError(f"mesh={axes}: sizes are positive, and at most one is -1")
    if free and len(devices) % fixed == 0:
        axes[free[0]] = len(devices) // fixed
    if int(np.prod(list(axes.values()))) != len(devices):
        raise ValueError(f"mesh={axes} does not cover the {len(devices)} devices here; use -1 for one axis")
    # Explicit axes (jax.make_mesh's default) break concatenation with a class token: ask for Auto.
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How every array of a batch lies: the leading dimension over `data`, the others whole."""
    return NamedSharding(mesh, P("data"))


def on_own_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays [B, ...], run by each device on its own rows of the batch and nobody else's.

    For what the partitioner would only split by gathering first, as a loop over examples. Inside `jax.jit`, under
    `jax.set_mesh`; without a mesh it is `function` itself. The function must treat rows independently, and give arrays
    that again begin with the batch dimension.
    """

    def per_device(*arrays: Any) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*arrays)
        return jax.shard_map(function, in_specs=P("data"), out_specs=P("data"))(*arrays)

    return per_device


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def state_sharding(mesh: Mesh, abstract: Any, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """The sharding of each leaf of a state (or of parameters), by the first rule that matches its path.

    Args:
      mesh: from `make_mesh`.
      abstract: a tree of arrays or `jax.ShapeDtypeStruct`, e.g. of `jax.eval_shape`.
      rules: (regular expression searched in the path 'params/encoder/...', PartitionSpec).

    Raises:
      ValueError: a leaf matches no rule.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, partition in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, partition)
        raise ValueError(f"no sharding rule matches {name} {leaf.shape}; add one to the table")

    return jax.tree_util.tree_map_with_path(spec, abstract)


def check_batch_size(mesh: Mesh, batch_size: int, name: str = "batch_size") -> None:
    """Raises ValueError unless the devices along `data` divide the batch."""
    ways = mesh.shape["data"]
    if batch_size < 1 or batch_size % ways:
        raise ValueError(
            f"{name}={batch_size} is not divided by the {ways} devices along the mesh's data axis; "
            f"use a multiple of {ways}, e.g. {max(1, round(batch_size / ways)) * ways}"
        )


def process_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The rows [low, high) of a global batch that this process must feed, read off the sharding itself."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size) for index in slices]
    return min(b[0] for b in bounds), max(b[1] for b in bounds)


def place_batch(batch: Mapping[str, Any], mesh: Mesh, batch_size: int) -> Any:
    """This process's rows of a batch, as global arrays on the mesh.

    Args:
      batch: NumPy arrays (nested dicts allowed), leading dimension the rows of `process_rows`.
      mesh: from `make_mesh`.
      batch_size: the global one.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), (batch_size, *np.shape(x)[1:])),
        batch,
    )
