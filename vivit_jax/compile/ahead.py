"""Compiling one program, and what the compiler says of it: memory on each device, traffic, time."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from vivit_jax.compile import collectives
from vivit_jax.train import compiled_step

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_NEEDS = re.compile(r"([\d.]+)([KMG]?)\)? ?(?:of|exceeds available HBM) \(?([\d.]+)([KMG]?)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program; bytes are those on one device.

    Attributes:
      fits: whether it compiled; False: it needs more memory than there is.
      peak: bytes in use at the worst moment (`compilation.peak_bytes`). Of a program that does not fit, what the
        compiler says it would need (XLA: of temporaries alone, in some versions).
      available: bytes that the compiler gives to a program; None where it did not have to say.
      argument, temporary: bytes of the arguments (state and batch) and of the temporaries, which share their places
        in part: together they can be more than `peak`. None where it does not fit.
      traffic: what is sent, the largest first.
      seconds: of compiling.
      message: of the compiler, where it does not fit.
    """

    fits: bool
    peak: int
    available: int | None = None
    argument: int | None = None
    temporary: int | None = None
    traffic: tuple[collectives.Traffic, ...] = ()
    seconds: float = 0.0
    message: str = ""


def compile_ahead(lowered: Any, mesh: Any) -> Compiled:
    """Compiles a lowered program.

    Args:
      lowered: of `jax.jit(...).lower(...)`, for the devices of `mesh`.
      mesh: whose axes the traffic is told by.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, available = memory_asked_for(str(error))
        return Compiled(
            False, needs, available, seconds=time.perf_counter() - began, message=str(error).partition("\n")[0]
        )
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    return Compiled(
        True,
        compiled_step.peak_bytes(memory, mesh.devices.flat[0].platform),
        argument=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        traffic=tuple(collectives.find(compiled.as_text(), dict(mesh.shape))),
        seconds=seconds,
    )


def memory_asked_for(message: str) -> tuple[int, int | None]:
    """(bytes needed, bytes available) of the message that memory does not suffice; (0, None) where it has no numbers.

    It has several wordings: "Used 44.28G of 15.75G hbm", "... temporaries (174.74G) exceeds available HBM (15.48G)".
    """
    if (match := _NEEDS.search(message)) is None:
        return 0, None
    needs, unit, available, other = match.groups()
    return round(float(needs) * _UNITS[unit]), round(float(available) * _UNITS[other])
