"""Collectives of a compiled program, parsed from its text (XLA's HLO).

Instructions in the body of a loop (a scan over layers) count once per iteration where the trip count is known.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.compile import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Newer compilers write mesh['a'=4,'b'=2] {'b'}, groups along axes of a mesh, or along part of an axis: {'a':(1)2} is
# the sub-axis of size 2 of 'a' with size 1 before it.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_MESH_SIZE = re.compile(r"'([\w.]+)'=(\d+)")
_MESH_AXIS = re.compile(r"'([\w.]+)'(?::\((\d+)\)(\d+))?")
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_PAIRS = re.compile(r"source_target_pairs=(\{\{.*?\}\})")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind, mesh axis and dtype, in one run of the program."""

    kind: str  # one of `KINDS`, or 'send' between slices
    axis: str  # mesh axis, several joined by `+`; 'slices' between slices
    dtype: str  # as XLA writes it: bf16, f32
    count: int  # of operations
    bytes: int  # input or output bytes of one device, whichever is larger


def find(text: str, mesh: Mapping[str, int]) -> list[Traffic]:
    """Returns the collectives of `compiled.as_text()`, the largest first; `mesh` is `dict(mesh.shape)`."""
    bodies, entry = hlo.computations(text)
    devices = math.prod(mesh.values())
    totals: dict[tuple[str, str, str], list[int]] = {}  # (kind, axis, dtype) -> [count, bytes]
    for name, runs in hlo.run_counts(bodies, entry).items():
        for line in bodies[name]:
            if (one := hlo.parse(line)) is None:
                continue
            kind = one.opcode.removesuffix("-start")
            sizes = [(array.dtype, hlo.BYTES[array.dtype] * array.elements) for array in hlo.arrays(one.type)]
            if kind == "send" and "xla_megascale_runtime" in line:
                # Traffic between slices goes through the hosts: a `send` for the Megascale runtime.
                axis, sizes = "slices", sizes[:1]  # the other results are for the runtime
            elif kind in KINDS:
                groups = _groups(line, devices)
                axis = _axis(groups, mesh)
            else:
                continue
            if one.opcode.endswith("-start") and one.type.startswith("(") and kind != "all-reduce":
                # An asynchronous start returns its operands before its results.
                sizes = sizes[len(sizes) // 2 :]
            if kind == "reduce-scatter":  # its input is larger than its result
                sizes = [(dtype, size * len(groups[0])) for dtype, size in sizes]
            for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
                total = totals.setdefault((kind, axis, dtype), [0, 0])
                total[0] += runs
                total[1] += runs * sum(size for other, size in sizes if other == dtype)
    return sorted((Traffic(*key, *total) for key, total in totals.items()), key=lambda traffic: -traffic.bytes)


def _groups(line: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices that exchange data, each device by its flat index in the mesh."""
    if pairs := _PAIRS.search(line):
        return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if named := _MESH_GROUPS.search(line):
        return _groups_along({name: int(size) for name, size in _MESH_SIZE.findall(named[1])}, named[2])
    match = _GROUPS.search(line)
    if match is None or match[1] == "{}":
        return [list(range(devices))]
    if match[1].startswith("{"):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
    # The short form [groups,size]<=[dims]T(order): arange reshaped to `dims`, transposed by `order`, split into rows.
    shape, dims, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", match[1]).groups()
    numbers = np.arange(devices).reshape([int(n) for n in dims.split(",")])
    if order:
        numbers = numbers.transpose([int(n) for n in order.split(",")])
    return numbers.reshape([int(n) for n in shape.split(",")]).tolist()


def _groups_along(sizes: Mapping[str, int], axes: str) -> list[list[int]]:
    """Returns the groups of devices that differ along `axes` only, in a mesh of these axis sizes."""
    parts: list[tuple[int, bool]] = []  # (size of a sub-axis, outermost first; whether the groups run along it)
    chosen = {name: (int(before or 1), int(size or 0)) for name, before, size in _MESH_AXIS.findall(axes)}
    for name, whole in sizes.items():
        before, size = chosen.get(name, (whole, 1))
        size = size or whole
        parts += [(before, False), (size, name in chosen), (whole // (before * size), False)]
    numbers = np.arange(math.prod(sizes.values())).reshape([size for size, _ in parts])
    order = sorted(range(len(parts)), key=lambda i: parts[i][1])
    group_size = math.prod(size for size, along in parts if along)
    return numbers.transpose(order).reshape(-1, group_size).tolist()


def _axis(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
    """Returns the mesh axes along which the devices of a group differ, joined by `+`."""
    coordinates = [np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups if len(group) > 1]
    differ = [any(len(set(group[i].tolist())) > 1 for group in coordinates) for i in range(len(mesh))]
    return "+".join(axis for axis, yes in zip(mesh, differ, strict=True) if yes) or "none"
