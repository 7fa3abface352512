"""Compilation of one program for devices that need not exist, and the largest batch that fits their memory."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

from vivit_jax.compile import hlo
from vivit_jax.train_step import memory

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_REQUIRED = re.compile(r"([\d.]+)([KMG]?)\)? ?(?:of|exceeds available HBM) \(?([\d.]+)([KMG]?)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for a program. Bytes are those of one device."""

    fits: bool
    # Bytes in use at the worst moment. Where the program does not fit, the bytes that the compiler's message names
    # (some versions of XLA name the temporaries alone).
    peak: int
    available: int | None = None  # bytes that the compiler gives to a program, where it said so
    # Bytes of state and batch, and of temporaries, where the program fits. They overlap: the sum can exceed `peak`.
    argument: int | None = None
    temporary: int | None = None
    traffic: tuple[hlo.Traffic, ...] = ()  # the largest first
    hbm: int = 0  # bytes read from and written to the device's memory in one run
    seconds: float = 0.0  # of compilation
    message: str = ""  # the compiler's error where the program does not fit


def compile_ahead(lowered: Any, mesh: Any) -> Compiled:
    """Compiles a program, from `jax.jit(...).lower(...)`, for the devices of a mesh, whose axes name the traffic."""
    began = time.perf_counter()
    try:
        executable = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        required, available = parse_out_of_memory(str(error))
        message = str(error).partition("\n")[0]
        return Compiled(False, required, available, seconds=time.perf_counter() - began, message=message)
    seconds = time.perf_counter() - began
    analysis, text = executable.memory_analysis(), executable.as_text()
    return Compiled(
        True,
        memory.peak_bytes(analysis, mesh.devices.flat[0].platform),
        argument=analysis.argument_size_in_bytes,
        temporary=analysis.temp_size_in_bytes,
        traffic=tuple(hlo.collectives(text, dict(mesh.shape))),
        hbm=hlo.hbm_traffic(text),
        seconds=seconds,
    )


def parse_out_of_memory(message: str) -> tuple[int, int | None]:
    """Returns (bytes required, bytes available) of an out-of-memory error; (0, None) if it names no sizes.

    XLA has several wordings: "Used 44.28G of 15.75G hbm", "... temporaries (174.74G) exceeds available HBM (15.48G)".
    """
    if (match := _REQUIRED.search(message)) is None:
        return 0, None
    required, required_unit, available, available_unit = match.groups()
    return round(float(required) * _UNITS[required_unit]), round(float(available) * _UNITS[available_unit])


def largest_batch(compile_with: Callable[[int], Compiled], start: int, at_most: int = 1024) -> int:
    """Finds the most clips per batch shard with which a program fits, 0 if none; it was compiled, as was one more.

    It doubles `start` while that fits, then bisects. `compile_with`: clips per batch shard -> the compiled program.
    """
    low, high = 0, at_most + 1  # `low` fits, `high` does not
    clips = max(1, min(start, at_most))
    while high - low > 1:
        low, high = (clips, high) if compile_with(clips).fits else (low, clips)
        clips = min(2 * low, at_most) if high > at_most else (low + high) // 2
    return low
