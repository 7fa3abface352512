"""Device meshes and partition specs: axes, rules for parameters, placement of batches and of activations.

One program runs on one device or on a pod: `jax.jit` over one named mesh with four axes, any of which may be 1:

* `data`: splits the batch, copies parameters (data parallelism);
* `fsdp`: splits the batch, the parameters and the optimizer's state (fully sharded data parallelism). With `data` above
  1 it is hybrid: split within a group of neighbouring devices, copied between groups;
* `tensor`: splits attention heads and the MLP's hidden layer (Megatron-LM, arXiv:1909.08053, section 3);
* `sequence`: splits the tokens of Model 1 and the frames of Models 2 to 4.

The mesh changes the numbers of a run only by the order of floating-point sums.

Without a mesh the functions on activations are the identity. They are not `flax.linen.with_logical_constraint`, which
has no counterpart for `shard_map` and splits also dimensions that are shorter than the number of devices.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vivit_jax.utils.trees import path_name

# Outermost first: the axes that communicate most come last and get neighbouring devices.
AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")


def complete_axes(axes: Mapping[str, int]) -> dict[str, int]:
    """Adds the sizes of absent axes: 1, and -1 ("all that remain") for `data` unless another axis has it."""
    return dict.fromkeys(AXES, 1) | {"data": 1 if -1 in axes.values() else -1} | dict(axes)


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh over all devices, with all four axes.

    On TPUs the devices of a slice are arranged by their interconnect (`jax.experimental.mesh_utils`), and several
    slices along `data`, the axis that communicates least. An arrangement in which a process would not feed one
    contiguous range of the batch's rows is replaced by the order of processes.

    `axes` are {axis: number of devices}, see `complete_axes`; `devices` by default all devices of all processes. Raises
    ValueError for unknown axes, and sizes that do not cover the devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    axes = dict(axes or {})
    if unknown := set(axes) - set(AXES):
        raise ValueError(f"mesh axes {sorted(unknown)} are not known; known: {', '.join(AXES)}")
    sizes = complete_axes(axes)
    if list(sizes.values()).count(-1) > 1 or any(type(n) is not int or n < -1 or n == 0 for n in sizes.values()):
        raise ValueError(f"mesh={axes}: sizes must be positive integers, and at most one can be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"mesh={axes} does not cover the {len(devices)} devices here; use -1 for one axis")
    # Explicit axes (the default of jax.make_mesh) break the concatenation of a class token.
    return Mesh(_arrange(tuple(sizes.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, neighbours in the last dimensions."""
    ordered = sorted(devices, key=lambda d: (getattr(d, "slice_index", 0) or 0, d.process_index, d.id))
    by_process = np.asarray(ordered, dtype=object).reshape(shape)
    if devices[0].platform != "tpu":
        return by_process
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    try:
        if slices == 1:
            by_wiring = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        elif shape[0] % slices == 0:
            within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
            by_wiring = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
        else:
            return by_process
    except (NotImplementedError, ValueError):  # only a part of a slice, or a shape that its wiring does not allow
        return by_process
    return by_wiring if _rows_are_contiguous(by_wiring) else by_process


def _rows_are_contiguous(devices: np.ndarray) -> bool:
    """Whether each process holds one contiguous range of the batch's rows."""
    processes = np.vectorize(lambda device: device.process_index)(devices)
    held = [np.flatnonzero((processes == process).any(axis=(2, 3))) for process in np.unique(processes)]
    return all(len(rows) == np.ptp(rows) + 1 for rows in held)


def check_model(mesh: Mesh, config: Any) -> None:
    """Checks that the mesh splits the dimensions of a model (a `ViViTConfig`) evenly.

    Only the tokens of Model 1 with their class token may be split unevenly: they are padded, by less than one a device.
    """
    attention, (n_t, n_h, n_w) = config.attention, config.grid
    _check_divides(mesh, "fsdp", "hidden_size", config.hidden_size)
    if attention == "factorised_dot_product":
        _check_divides(mesh, "tensor", "half of num_heads (Model 4 gives each half to one axis)", config.num_heads // 2)
    else:
        _check_divides(mesh, "tensor", "num_heads", config.num_heads)
    _check_divides(mesh, "tensor", "mlp_dim", config.mlp_dim)
    if attention == "spatiotemporal":
        _check_divides(mesh, "sequence", "n_t n_h n_w, the tokens of a clip", n_t * n_h * n_w)
        return
    _check_divides(mesh, "sequence", "n_t, the frames of the token grid (num_frames over the tubelet's)", n_t)
    if attention != "factorised_encoder" and n_h * n_w < mesh.shape["sequence"]:
        tokens = f"the {n_h} x {n_w} tokens of a frame, which attention over time is split by"
        advice = f"use at most {n_h * n_w}, and the other devices for data or fsdp"
        raise ValueError(f"mesh.sequence={mesh.shape['sequence']} is more than {tokens}; {advice}")


def _check_divides(mesh: Mesh, axis: str, name: str, size: int) -> None:
    if size % mesh.shape[axis]:
        allowed = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
        choices = f"on {mesh.size} devices mesh.{axis} can be {', '.join(map(str, allowed))}, with the others for data"
        raise ValueError(f"mesh.{axis}={mesh.shape[axis]} does not divide {name}, {size}; {choices}")


def check_batch_size(mesh: Mesh, batch_size: int, name: str = "batch_size", accumulate_steps: int = 1) -> None:
    """Raises ValueError unless the number of devices along `data` and `fsdp` divides the batch, or each microbatch."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH)
    if accumulate_steps > 1:
        batch_size, name = batch_size // accumulate_steps, f"{name} / optimizer.accumulate_steps"
    if batch_size < 1 or batch_size % devices:
        problem = f"{name}={batch_size} is not divided by the {devices} devices along the mesh's data and fsdp axes"
        nearest = max(1, round(batch_size / devices)) * devices
        raise ValueError(f"{problem}; use a multiple, e.g. {nearest}, or a larger tensor or sequence axis")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the arrays of a batch: the first dimension split over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that gives every device a full copy."""
    return NamedSharding(mesh, P())


def process_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns the rows [low, high) of a global batch that this process must feed, as its sharding has them.

    Where `tensor` or `sequence` spans processes, these share rows, and each feeds them.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [index[0].indices(batch_size) for index in slices]
    return min(b[0] for b in bounds), max(b[1] for b in bounds)


def place_batch(batch: Mapping[str, Any], mesh: Mesh, batch_size: int) -> Any:
    """Makes arrays of the global batch on the mesh from a tree of NumPy arrays with this process's `process_rows`."""

    def place(x: Any) -> jax.Array:
        shape = (batch_size, *np.shape(x)[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(x), shape)

    return jax.tree.map(place, batch)


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

    The compiler pads a dimension that the number of devices does not divide; one shorter than that is not split.
    """
    axes = _split(x.shape, logical_axes)
    return jax.lax.with_sharding_constraint(x, P(*axes)) if any(axes) else x


def shard_map_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs `function` on each device with that device's rows of the batch.

    For loops over examples, for which the partitioner would gather the batch on every device. To be called inside
    `jax.jit`. All arguments and results are arrays [B, ...], and `function` must treat their rows independently.
    """

    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=P(BATCH), out_specs=P(BATCH))


def shard_map_logical(function: Callable[..., jax.Array], arguments: Sequence[LogicalAxes]) -> Callable[..., jax.Array]:
    """Returns a function that runs `function` on each device with that device's part of every named dimension.

    For loops and kernels, which the partitioner cannot split. `function` must treat the named dimensions as
    independent. Dimensions that the number of devices does not divide are padded with zeros; the result is cut to size.
    `arguments` are the logical axes of each argument; the one result has the shape and the axes of the first.
    """

    def sharded(*arrays: jax.Array) -> jax.Array:
        splits = [_split(x.shape, names) for x, names in zip(arrays, arguments, strict=True)]
        mesh_axes, padded = _mesh_axes(), []
        if math.prod(mesh_axes.values()) == 1:
            return function(*arrays)
        for x, split in zip(arrays, splits, strict=True):
            shards = [math.prod(mesh_axes[axis] for axis in axes) for axes in split]
            padded.append(jnp.pad(x, [(0, -size % n) for size, n in zip(x.shape, shards, strict=True)]))
        specs = tuple(P(*split) for split in splits)
        # Kernels do not say over which axes their results vary, so jax cannot check it.
        out = jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*padded)
        return out[tuple(map(slice, arrays[0].shape))]

    return sharded


def _mesh_axes() -> dict[str, int]:
    """Sizes of the current mesh's axes that the partitioner controls: not those of an enclosing shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}


def _split(shape: Sequence[int], logical_axes: LogicalAxes) -> list[tuple[str, ...]]:
    """For each dimension the mesh axes that split it; () where it is shorter than the number of devices."""
    mesh_axes, split = _mesh_axes(), []
    for size, name in zip(shape, logical_axes, strict=True):
        axes = tuple(axis for axis in LOGICAL_AXES[name] if mesh_axes.get(axis, 1) > 1) if name else ()
        split.append(axes if size >= math.prod(mesh_axes[axis] for axis in axes) else ())
    return split


# Path regex -> names of the last dimensions; the first match applies. The leading axis of stacked layers has no name
# and is never split: every device needs every layer. Parameters that no row matches are small and copied.
RULES = {
    r"layers/attention\w*/(query|key|value)/kernel$": ("width", "heads", "head_dim"),
    r"layers/attention\w*/(query|key|value)/bias$": ("heads", "head_dim"),
    r"layers/attention\w*/out/kernel$": ("heads", "head_dim", "width"),
    r"layers/mlp/dense_in/kernel$": ("width", "mlp"),
    r"layers/mlp/dense_in/bias$": ("mlp",),
    r"layers/mlp/dense_out/kernel$": ("mlp", "width"),
    r"position_embedding$": ("positions", "width"),
    r"tokenizer/kernel$": ("width",),
    r"(pre_logits|head|head_\w+)/kernel$": ("width", "outputs"),
}
# Megatron-LM (arXiv:1909.08053, section 3): the first product of a pair is split by columns, the second by rows, so
# that each pair needs one all-reduce.
TENSOR = frozenset({"heads", "mlp"})
# FSDP splits the largest of these dimensions that it divides: over 256 devices, d = 768 would leave 3 columns each.
FSDP = frozenset({"width", "mlp", "positions", "outputs", "head_dim"})


def state_sharding(mesh: Mesh, abstract: Any) -> Any:
    """Returns the sharding of each leaf of a train state or parameter tree, by the first match in `RULES`.

    The optimizer's moments and the averaged parameters (EMA) have paths that end as the parameters' do, and so get the
    same shardings. `abstract` is a tree of arrays or `jax.ShapeDtypeStruct`.
    """

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        dimensions = next((names for pattern, names in RULES.items() if re.search(pattern, name)), ())
        # FSDP of biases would cost more communication than it saves memory.
        sizes = {**mesh.shape, "fsdp": 1} if name.endswith("bias") else mesh.shape
        return NamedSharding(mesh, _spec(sizes, leaf.shape, dimensions))

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
