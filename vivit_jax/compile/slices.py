"""TPU slices: what Google rents out under which name, and the devices that JAX sees on it.

The sizes are those of Cloud TPU's documentation, "System architecture" and the pages of each generation. Up to v4 and
for v5p a slice is named by its TensorCores (two a chip), v5e and v6e by its chips. A chip of v2 and v3 is two devices,
one of every later generation one (v4 and v5p: a "megacore").
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

GIB = 2**30


class SliceError(ValueError):
    """A slice that is not known; the message lists those that are."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU.

    Attributes:
      memory: bytes of high-bandwidth memory of one device.
      devices_per_chip: devices that JAX sees on a chip.
      cores_per_name: what the number in a slice's name counts, on one chip.
    """

    memory: int
    devices_per_chip: int
    cores_per_name: int


GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {
        "v2": Generation(8 * GIB, 2, 2),
        "v3": Generation(16 * GIB, 2, 2),
        "v4": Generation(32 * GIB, 1, 2),
        "v5e": Generation(16 * GIB, 1, 1),
        "v5p": Generation(95 * GIB, 1, 2),
        "v6e": Generation(32 * GIB, 1, 1),
    }
)

# Name -> chips along each axis of the torus. docs/tpu.md has a column for each.
SLICES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "v2-8": (2, 2),
        "v3-8": (2, 2),
        "v3-32": (4, 4),
        "v3-64": (4, 8),
        "v3-128": (8, 8),
        "v3-256": (8, 16),
        "v4-8": (2, 2, 1),
        "v4-16": (2, 2, 2),
        "v4-32": (2, 2, 4),
        "v4-64": (2, 4, 4),
        "v5e-4": (2, 2),
        "v5e-8": (2, 4),
        "v5e-16": (4, 4),
        "v5e-32": (4, 8),
        "v5e-64": (8, 8),
        "v5e-256": (16, 16),
        "v5p-8": (2, 2, 1),
        "v5p-32": (2, 2, 4),
        "v6e-4": (2, 2),
        "v6e-8": (2, 4),
        "v6e-16": (4, 4),
        "v6e-256": (16, 16),
    }
)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of TPU, or several alike that train together and reach one another through their hosts.

    Attributes:
      generation: a key of `GENERATIONS`.
      chips: along each axis of the torus, of one slice.
      count: slices.
    """

    generation: str
    chips: tuple[int, ...]
    count: int = 1

    @property
    def num_devices(self) -> int:
        """Devices that JAX sees, of all slices."""
        return self.count * math.prod(self.chips) * GENERATIONS[self.generation].devices_per_chip

    @property
    def memory(self) -> int:
        """Bytes of memory of one device; the compiler leaves a little less to the program."""
        return GENERATIONS[self.generation].memory

    @property
    def name(self) -> str:
        """What it is rented under, 'v3-32'; two of them are '2xv3-32'."""
        several = f"{self.count}x" if self.count > 1 else ""
        return f"{several}{self.generation}-{math.prod(self.chips) * GENERATIONS[self.generation].cores_per_name}"

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.name} ({'x'.join(map(str, self.chips))} chips{each}, {self.num_devices} devices)"


def parse(text: str) -> Slice:
    """A slice by its name, 'v3-32', or by its chips, 'v3:4x4'; several alike: '2xv3-32', '2xv3:4x4'.

    Raises:
      SliceError: an unknown name or generation.
    """
    several = re.fullmatch(r"([1-9]\d*)x([a-z].*)", text)
    count, one = (int(several[1]), several[2]) if several else (1, text)
    if one in SLICES:
        return Slice(one.partition("-")[0], SLICES[one], count)
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", one)
    if not found or found[1] not in GENERATIONS:
        raise SliceError(
            f"slice {text!r} is not known; known are {', '.join(SLICES)}, and by its chips any other, as in v3:4x4 "
            f"(generations {', '.join(GENERATIONS)}); several alike as in 2xv5e-16"
        )
    return Slice(found[1], tuple(int(n) for n in found[2].split("x")), count)


def without_a_tpu() -> None:
    """Lets libtpu compile on a machine that has no TPU. To be called before JAX looks for devices.

    JAX itself is told to run on the CPU: on a machine with a TPU the compiler would otherwise hold it.
    """
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    import jax

    jax.config.update("jax_platforms", "cpu")


def devices(slice_: Slice) -> Sequence[Any]:
    """The devices of a slice, to compile for; they need not be there.

    Raises:
      RuntimeError: libtpu is not installed, or does not know the slice.
    """
    from jax.experimental import topologies

    name = f"{slice_.generation}:{'x'.join(map(str, slice_.chips))}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if slice_.generation == "v4" else {}
    if slice_.count > 1:
        options["num_slices"] = slice_.count
    try:
        found = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:
        raise RuntimeError(
            f"no compiler for {slice_}: {error}. It comes with libtpu: pip install 'vivit_jax[tpu]', or pip install "
            "'jax[tpu]'"
        ) from error
    if len(found) != slice_.num_devices:
        raise RuntimeError(f"{slice_} has {len(found)} devices for the compiler; use a shape of chips that it knows")
    return found
