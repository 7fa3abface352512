"""The text of a compiled program (XLA's HLO): its computations, its instructions, and how often each runs."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
# dtype[sizes]{minor to major:T(tile)... S(memory space)}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    type: str  # of its result, with layouts; a tuple in brackets
    opcode: str
    operands: tuple[str, ...]
    rest: str  # the text behind the opcode's bracket
    root: bool


class Array(NamedTuple):
    """An array in an instruction's type."""

    dtype: str
    elements: int
    bytes: int  # with the padding of its tiles
    memory_space: int  # 0: the device's main memory (HBM)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Splits a program into {computation: its lines}; also returns the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif re.match(r"\}(?:$|, execution_thread)", line):  # not "}}": the attributes of a kernel have several lines
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def run_counts(bodies: Mapping[str, Sequence[str]], entry: str, without: Collection[str] = ()) -> dict[str, int]:
    """Returns how often each computation runs in one run of the program; loops of unknown length count once.

    What instructions with an opcode in `without` call is left out.
    """
    counts: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        counts[name] = counts.get(name, 0) + factor
        for line in bodies[name]:
            called = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            if not called or (without and (found := parse(line)) and found.opcode in without):
                continue
            trips = _trip_count(line, bodies)
            for other in called:
                if other in bodies:
                    visit(other, factor * trips)

    if entry:
        visit(entry, 1)
    return counts


def _trip_count(line: str, bodies: Mapping[str, Sequence[str]]) -> int:
    """Returns a loop's trip count, from its annotation or from the constant its counter is compared with; else 1."""
    if known := _TRIPS.search(line):
        return int(known[1])
    if (condition := _CONDITION.search(line)) is None:
        return 1
    body = bodies.get(condition[1], ())
    limits = [int(limit[1]) for other in body if (limit := _LIMIT.search(other))]
    counts_up = any("compare(" in other and "direction=LT" in other for other in body)
    return limits[0] if counts_up and len(limits) == 1 else 1


def parse(line: str) -> Instruction | None:
    """Parses a line of a computation; None where it is no instruction."""
    if (match := _INSTRUCTION.match(line)) is None:
        return None
    root, name, result, opcode, rest = match.groups()
    operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
    return Instruction(name, result, opcode, operands, rest, bool(root))


def arrays(type_: str) -> list[Array]:
    """Returns the arrays of a type; arrays of unknown dtypes (tokens, tuples) are left out."""
    found = []
    for dtype, sizes, order, layout in _ARRAY.findall(type_):
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
