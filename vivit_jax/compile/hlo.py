"""What the text of a compiled program (XLA's HLO) says of its collectives and of its HBM traffic.

The body of a loop (a scan over layers) counts once for each iteration where the trip count is known.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
# dtype[sizes]{minor to major:T(tile)... S(memory space)}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
# Newer compilers write mesh['a'=4,'b'=2] {'b'}: groups along axes of a mesh, or sub-axes, {'a':(size before)size}.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_MESH_SIZE = re.compile(r"'([\w.]+)'=(\d+)")
_MESH_AXIS = re.compile(r"'([\w.]+)'(?::\((\d+)\)(\d+))?")
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\(.*?\))?)")
# HBM traffic. Nothing is moved: names for what other instructions computed, or control flow, whose bodies count.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "iota", "async-start", "async-update"}
_VIEWS = ("bitcast", "reshape", "copy", "convert")  # inside a fusion
_SLICES = ("dynamic-slice", "slice", "gather")


class Array(NamedTuple):
    """An array in an instruction's type."""

    dtype: str
    elements: int
    bytes: int  # with the padding of its tiles
    memory_space: int  # 0: the device's main memory (HBM)


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    type: str  # of its result, with layouts; a tuple in brackets
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the text behind the opcode's bracket
    root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of its result; those of unknown dtypes (tokens, tuples) are left out."""
        found = []
        for dtype, sizes, order, layout in _ARRAY.findall(self.type):
            if dtype not in BYTES:
                continue
            shape = [int(n) for n in sizes.split(",") if n]
            tile = _TILE.search(layout)
            minor = [int(n) for n in order.split(",") if n]
            padded = list(shape)
            # The tile covers the last dimensions in memory, the minor-most last.
            for dimension, size in zip(minor, reversed(tile[1].split(",")) if tile else (), strict=False):
                padded[dimension] = -(-padded[dimension] // int(size)) * int(size)
            space = re.search(r"S\((\d+)\)", layout)
            elements = math.prod(shape)
            found.append(Array(dtype, elements, BYTES[dtype] * math.prod(padded), int(space[1]) if space else 0))
        return found

    @property
    def hbm(self) -> int:
        """Bytes of its result in HBM."""
        return sum(array.bytes for array in self.arrays if not array.memory_space)


Computation = dict[str, Instruction]  # by name


class Traffic(NamedTuple):
    """All collectives of one kind, mesh axis and dtype, in one run of the program."""

    kind: str  # one of `KINDS`, or 'send' between slices
    axis: str  # mesh axis, several joined by `+`; 'slices' between slices
    dtype: str  # as XLA writes it: bf16, f32
    count: int  # of operations
    bytes: int  # input or output bytes of one device, whichever is larger


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Parses `compiled.as_text()`: ({name: computation}, name of the entry computation)."""
    program: dict[str, Computation] = {}
    entry, name = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            program[name] = {}
            entry = name if match[1] else entry
        elif re.match(r"\}(?:$|, execution_thread)", line):  # not "}}": the attributes of a kernel have several lines
            name = None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            root, result, type_, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            program[name][result] = Instruction(result, type_, opcode, operands, rest, bool(root))
    return program, entry


def run_counts(program: Mapping[str, Computation], entry: str, without: Collection[str] = ()) -> dict[str, int]:
    """Returns how often each computation runs (loops of unknown length once), but for calls by opcodes in `without`."""
    counts: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        counts[name] = counts.get(name, 0) + factor
        for one in program[name].values():
            called = _CALLED.findall(one.rest) if one.opcode not in without else []
            if branches := _BRANCHES.search(one.rest):
                called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            for other in called:
                if other in program:
                    visit(other, factor * _trip_count(one.rest, program))

    if entry:
        visit(entry, 1)
    return counts


def _trip_count(rest: str, program: Mapping[str, Computation]) -> int:
    """Returns a loop's trip count, from its annotation or from the constant its counter is compared with; else 1."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    if (condition := _CONDITION.search(rest)) is None:
        return 1
    body = program.get(condition[1], {}).values()
    constants = [one.rest.partition(")")[0] for one in body if one.opcode == "constant" and one.type[:5] == "s32[]"]
    limits = [int(constant) for constant in constants if constant.isdigit()]
    counts_up = any(one.opcode == "compare" and "direction=LT" in one.rest for one in body)
    return limits[0] if counts_up and len(limits) == 1 else 1


def collectives(text: str, mesh: Mapping[str, int]) -> list[Traffic]:
    """Returns the collectives of `compiled.as_text()`, the largest first; `mesh` is `dict(mesh.shape)`."""
    program, entry = parse(text)
    devices = math.prod(mesh.values())
    totals: dict[tuple[str, str, str], list[int]] = {}  # (kind, axis, dtype) -> [count, bytes]
    for name, runs in run_counts(program, entry).items():
        for one in program[name].values():
            kind = one.opcode.removesuffix("-start")
            sizes = [(array.dtype, BYTES[array.dtype] * array.elements) for array in one.arrays]
            if kind == "send" and "xla_megascale_runtime" in one.rest:
                axis, sizes = "slices", sizes[:1]  # through the hosts; the other results are for the Megascale runtime
            elif kind in KINDS:
                groups = _groups(one.rest, devices)
                axis = _axis(groups, mesh)
            else:
                continue
            if one.opcode.endswith("-start") and one.type.startswith("(") and kind != "all-reduce":
                sizes = sizes[len(sizes) // 2 :]  # an asynchronous start returns its operands before its results
            if kind == "reduce-scatter":  # its input is larger than its result
                sizes = [(dtype, size * len(groups[0])) for dtype, size in sizes]
            for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
                total = totals.setdefault((kind, axis, dtype), [0, 0])
                total[0] += runs
                total[1] += runs * sum(size for other, size in sizes if other == dtype)
    return sorted((Traffic(*key, *total) for key, total in totals.items()), key=lambda traffic: -traffic.bytes)


def _groups(rest: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices that exchange data, each device by its flat index in the mesh."""
    if named := _MESH_GROUPS.search(rest):
        return _groups_along({name: int(size) for name, size in _MESH_SIZE.findall(named[1])}, named[2])
    match = _GROUPS.search(rest)
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


def hbm_traffic(text: str) -> int:
    """Returns the bytes that one device reads from and writes to HBM in one run of `compiled.as_text()`.

    XLA's own count (`cost_analysis()["bytes accessed"]`) takes the body of a loop once, whatever its length, and counts
    arrays that the compiler keeps on the chip (VMEM). Here only arrays in HBM count, with the padding of their tiles. A
    fusion that slices an operand, or updates a slice of it in place, counts the slice. A kernel (Pallas) counts its
    operands and results once each; what it reads repeatedly does not show.
    """
    program, entry = parse(text)
    total = 0
    for name, runs in run_counts(program, entry, without=("fusion", "reduce", "scatter", "sort", "map")).items():
        body = program[name]
        for one in body.values():
            if one.opcode in _FREE or one.opcode.endswith("-done"):
                continue
            called = one.rest.partition("calls=%")[2].partition(",")[0].split() if one.opcode == "fusion" else ()
            total += runs * _moved(one, body, program.get(called[0], {}) if called else {})
    return total


def _moved(one: Instruction, body: Computation, fused: Computation) -> int:
    """Returns the bytes that one instruction reads and writes in HBM."""
    sliced, results = _fused_slices(fused)
    if one.opcode in _SLICES:
        return 2 * one.hbm
    if one.opcode == "dynamic-update-slice":
        update = body.get(one.operands[1])
        return 2 * update.hbm if update else 0
    if one.opcode.endswith("-start"):  # its result holds operand, destination and a semaphore: of a copy or slice
        arrays = [array for array in one.arrays if array.elements > 1]
        if one.opcode.startswith("slice"):  # the operand is larger than what is moved
            return arrays[-1].bytes * (1 if arrays[-1].memory_space else 2)
        return sum(array.bytes for array in arrays if not array.memory_space)
    whole = {i: body[operand].hbm for i, operand in enumerate(one.operands) if operand in body}
    read = sum(int(min(sliced.get(i, size), size)) for i, size in whole.items())
    written = (min(results.get(i, a.bytes), a.bytes) for i, a in enumerate(one.arrays) if not a.memory_space)
    return read + sum(written)


def _fused_slices(fused: Computation) -> tuple[dict[int, float], dict[int, int]]:
    """Returns the bytes of slices in a fusion: ({operand: read}, infinity for all; {result: written}, if not all)."""
    users: dict[str, list[Instruction]] = {}
    for one in fused.values():
        for operand in one.operands:
            users.setdefault(operand, []).append(one)

    def read(name: str) -> float:
        """Bytes of a value that its users need; infinity: all."""
        needed: float = 0
        for user in users.get(name, ()):
            if user.opcode in _SLICES:
                needed += sum(array.bytes for array in user.arrays)
            elif user.opcode in _VIEWS:
                needed += read(user.name)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:  # that is updated in place
                return math.inf
        return needed

    sliced = {int(one.rest.partition(")")[0]): read(one.name) for one in fused.values() if one.opcode == "parameter"}
    written = {}
    for root in (one for one in fused.values() if one.root):
        elements: Sequence[str] = root.operands if root.opcode == "tuple" else (root.name,)
        for i, name in enumerate(elements):
            found = fused.get(name)
            while found and found.opcode in _VIEWS:
                found = fused.get(found.operands[0])
            if found and found.opcode == "dynamic-update-slice" and found.operands[1] in fused:
                written[i] = sum(array.bytes for array in fused[found.operands[1]].arrays)
    return sliced, written
