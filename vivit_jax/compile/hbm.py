"""HBM traffic of a compiled program, by its text: bytes that its instructions read from and write to main memory.

XLA's own count (`cost_analysis()["bytes accessed"]`) takes the body of a loop once, whatever its length, and counts
arrays that the compiler keeps on the chip (VMEM). Here a loop's body counts once for each iteration and only arrays in
HBM count, with the padding of their tiles. A fusion that slices an operand, or updates a slice of it in place, counts
the slice. A kernel (Pallas) counts its operands and results once each; what it reads repeatedly does not show.
"""

from collections.abc import Mapping, Sequence

from vivit_jax.compile import hlo
from vivit_jax.compile.hlo import Instruction

# Nothing is moved: names for what other instructions computed, or control flow, whose bodies count themselves.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "iota", "async-start", "async-update"}
_VIEWS = ("bitcast", "reshape", "copy", "convert")  # inside a fusion
_SLICES = ("dynamic-slice", "slice", "gather")


def traffic(text: str) -> int:
    """Returns the bytes of HBM traffic of one device in one run of `compiled.as_text()`."""
    bodies, entry = hlo.computations(text)
    parsed: dict[str, dict[str, Instruction]] = {}

    def instructions(name: str) -> dict[str, Instruction]:
        if name not in parsed:
            parsed[name] = {one.name: one for line in bodies.get(name, ()) if (one := hlo.parse(line))}
        return parsed[name]

    total = 0
    for name, runs in hlo.run_counts(bodies, entry, without=("fusion", "reduce", "scatter", "sort", "map")).items():
        body = instructions(name)
        for one in body.values():
            if one.opcode in _FREE or one.opcode.endswith("-done"):
                continue
            called = one.rest.partition("calls=%")[2].partition(",")[0].split() if one.opcode == "fusion" else ()
            total += runs * _moved(one, body, instructions(called[0]) if called else {})
    return total


def _moved(one: Instruction, body: Mapping[str, Instruction], fused: Mapping[str, Instruction]) -> int:
    """Returns the bytes that one instruction reads and writes in HBM."""
    sliced, results = _fused_slices(fused)
    if one.opcode in _SLICES:
        return 2 * _hbm(one.type)
    if one.opcode == "dynamic-update-slice":
        update = body.get(one.operands[1])
        return 2 * _hbm(update.type) if update else 0
    if one.opcode.endswith("-start"):  # its result holds operand, destination and a semaphore: of a copy or slice
        return _started(one)
    whole = {i: _hbm(body[operand].type) for i, operand in enumerate(one.operands) if operand in body}
    read = sum(min(sliced.get(i, size), size) for i, size in whole.items())
    arrays = {i: array.bytes for i, array in enumerate(hlo.arrays(one.type)) if not array.memory_space}
    return read + sum(min(results.get(i, size), size) for i, size in arrays.items())


def _started(one: Instruction) -> int:
    arrays = [array for array in hlo.arrays(one.type) if array.elements > 1]
    if one.opcode.startswith("slice"):  # the operand is larger than what is moved
        return 2 * arrays[-1].bytes if not arrays[-1].memory_space else arrays[-1].bytes
    return sum(array.bytes for array in arrays if not array.memory_space)


def _fused_slices(fused: Mapping[str, Instruction]) -> tuple[dict[int, int], dict[int, int]]:
    """Returns the bytes of slices in a fusion: ({operand: read}, {result: written}), of those that are not whole."""
    users: dict[str, list[Instruction]] = {}
    for one in fused.values():
        for operand in one.operands:
            users.setdefault(operand, []).append(one)

    def read(name: str) -> int | None:
        """Bytes of a value that its users need; None: all."""
        needed = 0
        for user in users.get(name, ()):
            if user.opcode in _SLICES:
                needed += sum(array.bytes for array in hlo.arrays(user.type))
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # updated in place
            elif user.opcode in _VIEWS:
                below = read(user.name)
                if below is None:
                    return None
                needed += below
            else:
                return None
        return needed

    sliced = {}
    for one in fused.values():
        if one.opcode == "parameter" and (needed := read(one.name)) is not None:
            sliced[int(one.rest.partition(")")[0])] = needed
    written = {}
    for root in (one for one in fused.values() if one.root):
        elements: Sequence[str] = root.operands if root.opcode == "tuple" else (root.name,)
        for i, name in enumerate(elements):
            found = fused.get(name)
            while found and found.opcode in _VIEWS:
                found = fused.get(found.operands[0])
            if found and found.opcode == "dynamic-update-slice" and found.operands[1] in fused:
                written[i] = sum(array.bytes for array in hlo.arrays(fused[found.operands[1]].type))
    return sliced, written


def _hbm(type_: str) -> int:
    return sum(array.bytes for array in hlo.arrays(type_) if not array.memory_space)
