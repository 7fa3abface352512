"""TPU slices: their names, topologies, memory, and devices to compile for.

The sizes are from Cloud TPU's documentation ("System architecture" and the page of each generation). The number in a
name counts TensorCores (two per chip) up to v4 and for v5p, and chips for v5e and v6e. A chip is two JAX devices for v2
and v3, and one device for later generations (v4 and v5p: a "megacore").
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
    """An unknown slice; the message lists the known ones."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU.

    Attributes:
      memory: HBM bytes of one device.
      devices_per_chip: JAX devices on a chip.
      cores_per_name: what one chip adds to the number in a slice's name.
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

# Name -> chips along each axis of the torus.
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
    """A TPU slice, or several of one type that train together, connected through their hosts.

    Attributes:
      generation: a key of `GENERATIONS`.
      chips: of one slice, along each axis of the torus.
      count: number of slices.
    """

    generation: str
    chips: tuple[int, ...]
    count: int = 1

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices."""
        return self.count * math.prod(self.chips) * GENERATIONS[self.generation].devices_per_chip

    @property
    def memory(self) -> int:
        """HBM bytes of one device; the compiler leaves slightly less to the program."""
        return GENERATIONS[self.generation].memory

    @property
    def name(self) -> str:
        """Cloud TPU's name of the slice, 'v3-32'; '2xv3-32' for two of them."""
        count = f"{self.count}x" if self.count > 1 else ""
        return f"{count}{self.generation}-{math.prod(self.chips) * GENERATIONS[self.generation].cores_per_name}"

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.name} ({'x'.join(map(str, self.chips))} chips{each}, {self.num_devices} devices)"


def parse(text: str) -> Slice:
    """Parses a slice given by name, 'v3-32', or by its chips, 'v3:4x4'; several of one type: '2xv3-32', '2xv3:4x4'.

    Raises:
      SliceError: an unknown name or generation.
    """
    match = re.fullmatch(r"([1-9]\d*)x([a-z].*)", text)
    count, name = (int(match[1]), match[2]) if match else (1, text)
    if name in SLICES:
        return Slice(name.partition("-")[0], SLICES[name], count)
    topology = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not topology or topology[1] not in GENERATIONS:
        raise SliceError(
            f"slice {text!r} is unknown; known are {', '.join(SLICES)}, and any other by its chips, as in v3:4x4 "
            f"(generations {', '.join(GENERATIONS)}); several slices as in 2xv5e-16"
        )
    return Slice(topology[1], tuple(int(n) for n in topology[2].split("x")), count)


def without_a_tpu() -> None:
    """Configures libtpu to compile on a machine without a TPU. Must run before JAX looks for devices.

    JAX itself runs on the CPU: on a machine with a TPU, the compiler would otherwise occupy it.
    """
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    import jax

    jax.config.update("jax_platforms", "cpu")


def devices(slice_: Slice) -> Sequence[Any]:
    """Returns the devices of a slice to compile for; the slice need not exist.

    Raises:
      RuntimeError: libtpu is not installed, or does not know the slice.
    """
    from jax.experimental import topologies

    name = f"{slice_.generation}:{'x'.join(map(str, slice_.chips))}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if slice_.generation == "v4" else {}
    if slice_.count > 1:
        options["num_slices"] = slice_.count
    try:
        topology_devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:
        raise RuntimeError(
            f"no compiler for {slice_}: {error}. Install libtpu: pip install 'vivit_jax[tpu]', or pip install "
            "'jax[tpu]'"
        ) from error
    if len(topology_devices) != slice_.num_devices:
        raise RuntimeError(
            f"the compiler sees {len(topology_devices)} devices in {slice_}; give a topology that it supports"
        )
    return topology_devices
