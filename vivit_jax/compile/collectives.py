"""What a compiled program sends between devices, read off its text (XLA's HLO).

The instructions of a loop's body count as often as the loop runs, where the compiler knows that (a scan over layers).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
# Between slices nothing is sent by a collective but through the hosts, by instructions for their runtime.
_SEND = re.compile(r"^\s*%?[\w.\-]+ = (\(.*?\)) send\(.*xla_megascale_runtime")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
# The form of newer compilers, mesh['a'=4,'b'=2] {'b'}: the groups along some axes of a mesh, which may be a part of
# one, {'a':(1)2}, the part of size 2 of 'a' with 1 in front of it.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_MESH_SIZE = re.compile(r"'([\w.]+)'=(\d+)")
_MESH_AXIS = re.compile(r"'([\w.]+)'(?::\((\d+)\)(\d+))?")
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_PAIRS = re.compile(r"source_target_pairs=(\{\{.*?\}\})")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind along one axis of the mesh.

    Attributes:
      kind: one of `KINDS`; 'send' for what goes to another slice.
      axis: of the mesh; several with +. 'slices' for what goes to another slice, whatever the axis.
      dtype: of the numbers sent, as XLA writes it: bf16, f32.
      times: how often in one run of the program.
      bytes: that one device puts in or gets out, whichever is more, in one run of the program.
    """

    kind: str
    axis: str
    dtype: str
    times: int
    bytes: int


def find(text: str, mesh: Mapping[str, int]) -> list[Traffic]:
    """The collectives of a program, the largest first.

    Args:
      text: `compiled.as_text()`.
      mesh: {axis: devices along it}, in the order of the mesh, as `dict(mesh.shape)`.
    """
    bodies, entry = _computations(text)
    devices = math.prod(mesh.values())
    found: dict[tuple[str, str, str], list[int]] = {}
    for name, times in _how_often(bodies, entry).items():
        for line in bodies[name]:
            if sent := _SEND.match(line):
                kind, axis, start, result = "send", "slices", None, sent[1]
                sizes = _sizes(result)[:1]  # the others are the runtime's own
            elif match := _INSTRUCTION.match(line):
                result, kind, start = match.groups()[:3]
                groups = _groups(line, devices)
                sizes, axis = _sizes(result), _axis(groups, mesh)
            else:
                continue
            if start and result.startswith("(") and kind != "all-reduce":
                # An asynchronous start hands on its operands too, in front of its results.
                sizes = _sizes(result[result.index("(") :], half=True)
            if kind == "reduce-scatter":  # its result is a share of what is put in
                sizes = [(dtype, size * len(groups[0])) for dtype, size in sizes]
            for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
                numbers = found.setdefault((kind, axis, dtype), [0, 0])
                numbers[0] += times
                numbers[1] += times * sum(size for other, size in sizes if other == dtype)
    traffic = [Traffic(*key, *numbers) for key, numbers in found.items()]
    return sorted(traffic, key=lambda one: -one.bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, name = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif line.startswith("}"):
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def _how_often(bodies: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program; a loop of unknown length counts once."""
    times: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        times[name] = times.get(name, 0) + factor
        for line in bodies[name]:
            called = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            trips = _trips(line, bodies)
            for other in called:
                if other in bodies:
                    visit(other, factor * trips)

    if entry:
        visit(entry, 1)
    return times


def _trips(line: str, bodies: Mapping[str, Sequence[str]]) -> int:
    """How often a loop runs: what the compiler knows of it, or the limit that its counter is compared with; else 1."""
    if known := _TRIPS.search(line):
        return int(known[1])
    if (condition := _CONDITION.search(line)) is None:
        return 1
    body = bodies.get(condition[1], ())
    limits = [int(limit[1]) for other in body if (limit := _LIMIT.search(other))]
    counts_up = any("compare(" in other and "direction=LT" in other for other in body)
    return limits[0] if counts_up and len(limits) == 1 else 1


def _sizes(shapes: str, half: bool = False) -> list[tuple[str, int]]:
    """(dtype, bytes) of each array in an instruction's type; with `half` only of the second half of them."""
    found = [
        (dtype, _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(shapes)
        if dtype in _BYTES
    ]
    return found[len(found) // 2 :] if half else found


def _groups(line: str, devices: int) -> list[list[int]]:
    """The devices that exchange with one another, as numbers of their place in the mesh."""
    if pairs := _PAIRS.search(line):
        return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if named := _MESH_GROUPS.search(line):
        return _groups_along({name: int(size) for name, size in _MESH_SIZE.findall(named[1])}, named[2])
    match = _GROUPS.search(line)
    if match is None or match[1] == "{}":
        return [list(range(devices))]
    if match[1].startswith("{"):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
    # The short form [groups,size]<=[dims]T(order): the numbers 0, 1, ... in `dims`, transposed, cut into rows.
    shape, dims, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", match[1]).groups()
    numbers = np.arange(devices).reshape([int(n) for n in dims.split(",")])
    if order:
        numbers = numbers.transpose([int(n) for n in order.split(",")])
    return numbers.reshape([int(n) for n in shape.split(",")]).tolist()


def _groups_along(sizes: Mapping[str, int], axes: str) -> list[list[int]]:
    """The groups of devices that differ along `axes` alone, of a mesh whose devices are numbered in its order."""
    parts: list[tuple[int, bool]] = []  # sizes, outermost first, and whether the groups run along them
    chosen = {name: (int(before or 1), int(size or 0)) for name, before, size in _MESH_AXIS.findall(axes)}
    for name, whole in sizes.items():
        before, size = chosen.get(name, (whole, 1))
        size = size or whole
        parts += [(before, False), (size, name in chosen), (whole // (before * size), False)]
    numbers = np.arange(math.prod(sizes.values())).reshape([size for size, _ in parts])
    order = sorted(range(len(parts)), key=lambda i: parts[i][1])
    together = math.prod(size for size, along in parts if along)
    return numbers.transpose(order).reshape(-1, together).tolist()


def _axis(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
    """The axes along which the devices of a group differ."""
    places = [np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups if len(group) > 1]
    differ = [any(len(set(place[i].tolist())) > 1 for place in places) for i in range(len(mesh))]
    return "+".join(axis for axis, yes in zip(mesh, differ, strict=True) if yes) or "none"
