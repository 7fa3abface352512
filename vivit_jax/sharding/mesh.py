"""The mesh over all devices of all processes, and how a batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Outermost first: what talks most has the nearest neighbours.
AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The named mesh over all devices; it has all four axes, whatever their sizes.

    Devices of one slice are laid out by `jax.experimental.mesh_utils`, along the wires of a TPU; several slices follow
    one another along `data`, the axis that talks least. Each process feeds one contiguous run of the batch's rows: a
    layout in which it would not is given up for the order of processes.

    Args:
      axes: axis name -> devices along it; one may be -1, "all that are left". An axis that is not named is 1, but for
        `data`, which is what is left where no other is -1.
      devices: default, all devices of all processes.

    Raises:
      ValueError: an unknown axis, a size below 1 (other than one -1), or sizes whose product is not the device count.
    """
    devices = list(devices if devices is not None else jax.devices())
    axes = dict(axes or {})
    if unknown := set(axes) - set(AXES):
        raise ValueError(f"mesh axes {sorted(unknown)} are not known; known: {', '.join(AXES)}")
    sizes = dict.fromkeys(AXES, 1) | {"data": 1 if -1 in axes.values() else -1} | axes
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh={axes}: sizes are positive, and at most one is -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(size for size in sizes.values()) != len(devices):
        raise ValueError(f"mesh={axes} does not cover the {len(devices)} devices here; use -1 for one axis")
    # Explicit axes (jax.make_mesh's default) break concatenation with a class token: ask for Auto.
    return Mesh(_layout(tuple(sizes.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _layout(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, neighbours in the last dimensions."""
    by_process = sorted(devices, key=lambda d: (getattr(d, "slice_index", 0) or 0, d.process_index, d.id))
    plain = np.asarray(by_process, dtype=object).reshape(shape)
    if devices[0].platform != "tpu":
        return plain
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    try:
        if slices == 1:
            laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        elif shape[0] % slices == 0:
            within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
            laid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        else:
            return plain
    except (NotImplementedError, ValueError):  # a part of a slice, or a shape that the wires do not have
        return plain
    return laid if _contiguous(laid) else plain


def _contiguous(devices: np.ndarray) -> bool:
    """Whether each process holds one contiguous run of the batch's rows."""
    rows = devices.reshape(devices.shape[0] * devices.shape[1], -1)
    own: dict[int, set[int]] = {}
    for row, device in ((i, d) for i, group in enumerate(rows) for d in group):
        own.setdefault(device.process_index, set()).add(row)
    return all(max(held) - min(held) + 1 == len(held) for held in own.values())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How every array of a batch lies: the leading dimension over `data` and `fsdp`, the others whole."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def check_batch_size(mesh: Mesh, batch_size: int, name: str = "batch_size") -> None:
    """Raises ValueError unless the devices along `data` and `fsdp` divide the batch."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % ways:
        raise ValueError(
            f"{name}={batch_size} is not divided by the {ways} devices along the mesh's data and fsdp axes; "
            f"use a multiple of {ways}, e.g. {max(1, round(batch_size / ways)) * ways}, or more of tensor or sequence"
        )


def process_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """The rows [low, high) of a global batch that this process must feed, read off the sharding itself.

    Processes that share rows, as they do where `tensor` or `sequence` goes across processes, each feed them.
    """
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
