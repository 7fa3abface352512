"""Bytes and time of a compiled program by part of the model: which parts are bound by memory.

Bytes are those of the operands and results of each kernel of the compiled program, which a device reads from and
writes to its memory unless they are still in a cache. Times are those of the profiler.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

PRODUCTS = "dense: products"
# The first pattern that the name of an operation matches; names are paths through the model's modules.
PARTS = (
    ("optimizer, guard, norms", r"^(?!.*jvp\()"),
    ("dropout", r"/Dropout_\d|bernoulli|random_bits"),
    ("LayerNorm", r"/norm(_\w+)?/"),
    ("attention", r"_attend"),
    (
        PRODUCTS,
        r"/(query|key|value|qkv|out|dense_in|dense_out)/.*dot_general|/(attention\w*|mlp)/.*dot_general",
    ),
    ("dense: casts, biases", r"/(query|key|value|qkv|out|dense_in|dense_out)/"),
    ("GELU", r"/mlp/"),
    ("residual stream", r"/encoder/|_encoder/"),
    ("tokenizer, head, loss", r""),
)
UNNAMED = "copies and others without a name"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id"}
_CALLS = {"call", "while", "conditional", "async-start"}


class Instruction(NamedTuple):
    name: str
    bytes: int  # of the result
    opcode: str
    operands: tuple[str, ...]
    text: str  # of the arguments and attributes


class Kernel(NamedTuple):
    """A kernel of a compiled program: the part that it belongs to, and bytes read and written in all its calls."""

    name: str
    part: str
    bytes: float
    calls: int


def part_of(op_name: str) -> str:
    """Returns the part of the model that an operation belongs to, by its name in the compiled program."""
    return next(part for part, pattern in PARTS if re.search(pattern, op_name)) if op_name else UNNAMED


def kernels(hlo: str) -> list[Kernel]:
    """Returns the kernels of a compiled program, from the text of `compiled.as_text()`."""
    computations = _computations(hlo)
    found: dict[str, Kernel] = {}

    def walk(computation: str, calls: int) -> None:
        instructions = {one.name: one for one in computations.get(computation, ())}
        for one in instructions.values():
            if one.opcode in _CALLS:
                trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', one.text)
                for called in re.findall(r"(?:to_apply|body|calls|branch_computations)=\{?%([\w.\-]+)", one.text):
                    walk(called, calls * int(trips[1] if trips else 1))
            elif one.opcode not in _FREE and not one.opcode.endswith("-done"):
                library = _library_call(one, computations)
                op_name = re.search(r'op_name="([^"]*)"', library.text)
                read = _bytes_read(one, instructions, computations)
                part = part_of(op_name[1].split(";")[0] if op_name else "")
                if "__cublas$" in library.text and part not in ("attention", "tokenizer, head, loss"):
                    part = PRODUCTS  # those of kernel gradients are named after the transposition that follows
                before = found.get(library.name, Kernel(library.name, part, 0.0, 0))
                moved = before.bytes + calls * (one.bytes + read)
                found[library.name] = Kernel(library.name, part, moved, before.calls + calls)

    walk("ENTRY", 1)
    return list(found.values())


def _library_call(one: Instruction, computations: dict[str, list[Instruction]]) -> Instruction:
    """Returns the call of a library that a fusion with slices consists of, which the profiler names; else `one`."""
    called = re.search(r"calls=%([\w.\-]+)", one.text) if one.opcode == "fusion" else None
    body = computations.get(called[1], []) if called else []
    return next((inner for inner in body if inner.opcode == "custom-call"), one)


def _computations(hlo: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of each computation by name, "ENTRY" for the program's own."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
            if head:
                current = found["ENTRY" if head[1] else head[2]] = []
        elif match := _INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            if opcode == "custom-call":  # a library's workspace is not traffic
                shape = re.sub(r"\b[su]8\[[\d,]*\]", "", shape)
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
            current.append(Instruction(name, _shape_bytes(shape), opcode, operands, rest))
    return found


def _shape_bytes(shape: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple: 'bf16[8,16]{1,0}' -> 256."""
    total = 0
    for dtype, sizes in _SHAPE.findall(shape):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total


def _bytes_read(
    one: Instruction, instructions: dict[str, Instruction], computations: dict[str, list[Instruction]]
) -> int:
    """Returns the bytes that an instruction reads; a fusion that slices an operand reads the slices."""
    called = re.search(r"calls=%([\w.\-]+)", one.text) if one.opcode == "fusion" else None
    body = computations.get(called[1], []) if called else []
    parameters = {int(inner.text.split(")")[0]): inner.name for inner in body if inner.opcode == "parameter"}
    total = 0
    for number, operand in enumerate(one.operands):
        whole = instructions[operand].bytes if operand in instructions else 0
        users = [inner for inner in body if parameters.get(number) in inner.operands]
        if users and all(user.opcode in ("slice", "dynamic-slice") for user in users):
            whole = min(whole, sum(user.bytes for user in users))
        elif one.opcode in ("slice", "dynamic-slice"):
            whole = min(whole, one.bytes)
        total += whole
    return total


def kernel_times(work: Callable[[], Any], steps: int = 3) -> dict[str, float]:
    """Returns {kernel: seconds of one step} by the profiler; on a CPU these are summed over its cores."""
    with tempfile.TemporaryDirectory(prefix="vivit_jax_profile_") as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                work()
        times: dict[str, float] = defaultdict(float)
        for file in sorted(Path(folder).rglob("*.xplane.pb")):
            for name, nanoseconds in _kernel_events(file):
                times[_key(name)] += 1e-9 * nanoseconds / steps
    return dict(times)


def _kernel_events(file: Path) -> Iterator[tuple[str, float]]:
    """Yields (kernel, nanoseconds) of each run of a kernel."""
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        on_device = plane.name.startswith("/device:")
        for line in plane.lines:
            if on_device and not line.name.startswith("Stream"):  # the others sum the same kernels up
                continue
            for event in line.events:
                operation = next((value for key, value in event.stats if key == "hlo_op"), None)
                if on_device or operation:  # the host's other events are no kernels
                    yield str(operation or event.name), event.duration_ns


def _key(name: str) -> str:
    """Kernels are named after instructions, with '_' for '.' and '-'."""
    return re.sub(r"[.\-]", "_", name)


def by_part(found: list[Kernel], times: dict[str, float]) -> list[dict[str, Any]]:
    """Sums kernels up by part: kernels, bytes and, where there are times, seconds; the largest first.

    Kernels of the profiler that are none of the program's (e.g. those of a library) have a row of their own.
    """
    rows: dict[str, dict[str, Any]] = {}
    remaining = dict(times)
    for kernel in found:
        row = rows.setdefault(kernel.part, {"part": kernel.part, "kernels": 0, "bytes": 0.0, "seconds": 0.0})
        row["kernels"] += kernel.calls
        row["bytes"] += kernel.bytes
        row["seconds"] += remaining.pop(_key(kernel.name), 0.0)
    if remaining:
        other = max(remaining, key=remaining.get)
        rows["other"] = {"part": f"not matched, e.g. {other[:40]}", "kernels": len(remaining), "bytes": 0.0}
        rows["other"]["seconds"] = sum(remaining.values())
    return sorted(rows.values(), key=lambda row: (-row["seconds"], -row["bytes"]))
