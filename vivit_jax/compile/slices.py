"""TPU slices: their names, topologies, memory, and devices to compile for.

The number in a name counts TensorCores (two per chip) up to v4 and for v5p, and chips for v5e and v6e. A chip is two
JAX devices for v2 and v3, and one device for later generations. slices.toml has the sizes, and where they are from.
"""

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPU."""

    memory: int  # HBM bytes of one device; the compiler leaves slightly less to the program
    bandwidth: float  # HBM bytes/s of one device
    devices_per_chip: int
    cores_per_name: int  # what one chip adds to the number in a slice's name
    topologies: str  # chips along each axis of the torus, of the slices that are known by name


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
GENERATIONS = {name: Generation(**fields) for name, fields in _TABLE.items()}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, or several of one type that train together, connected through their hosts."""

    generation: str  # a key of `GENERATIONS`
    chips: tuple[int, ...]  # of one slice, along each axis of the torus
    count: int = 1

    @property
    def kind(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def num_devices(self) -> int:
        return self.count * math.prod(self.chips) * self.kind.devices_per_chip

    @property
    def name(self) -> str:
        """Cloud TPU's name of the slice, 'v3-32'; '2xv3-32' for two of them."""
        count = f"{self.count}x" if self.count > 1 else ""
        return f"{count}{self.generation}-{math.prod(self.chips) * self.kind.cores_per_name}"

    def __str__(self) -> str:
        each = " each" if self.count > 1 else ""
        return f"{self.name} ({'x'.join(map(str, self.chips))} chips{each}, {self.num_devices} devices)"


def _chips(topology: str) -> tuple[int, ...]:
    return tuple(int(n) for n in topology.split("x"))


_NAMED = [Slice(name, _chips(topology)) for name, g in GENERATIONS.items() for topology in g.topologies.split()]
SLICES = {named.name: named for named in _NAMED}


def parse(text: str) -> Slice:
    """Parses a slice by name, 'v3-32', or by chips, 'v3:4x4'; several: '2xv3-32', '2xv3:4x4'; ValueError for others."""
    match = re.fullmatch(r"([1-9]\d*)x([a-z].*)", text)
    count, name = (int(match[1]), match[2]) if match else (1, text)
    name = name.replace("v5litepod", "v5e")  # as gcloud calls it
    if name in SLICES:
        return dataclasses.replace(SLICES[name], count=count)
    topology = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not topology or topology[1] not in GENERATIONS:
        others = f"any other by its chips, as in v3:4x4 (generations {', '.join(GENERATIONS)})"
        raise ValueError(f"slice {text!r} is unknown; known are {', '.join(SLICES)}, {others}, several as 2xv5e-16")
    return Slice(topology[1], _chips(topology[2]), count)


def without_a_tpu() -> None:
    """Lets libtpu compile on a machine without a TPU, and JAX run on the CPU. Must run before JAX looks for devices."""
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    import jax

    jax.config.update("jax_platforms", "cpu")


def devices(slice_: Slice) -> Sequence[Any]:
    """Returns the devices of a slice, which need not exist, to compile for; RuntimeError where libtpu cannot."""
    from jax.experimental import topologies

    name = f"{slice_.generation}:{'x'.join(map(str, slice_.chips))}"
    options: dict[str, Any] = {"chip_config_name": "megacore"} if slice_.generation == "v4" else {}
    if slice_.count > 1:
        options["num_slices"] = slice_.count
    try:
        topology_devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:
        raise RuntimeError(f"no compiler for {slice_}: {error}; pip install 'vivit_jax[tpu]'") from error
    if (count := len(topology_devices)) != slice_.num_devices:
        raise RuntimeError(f"the compiler sees {count} devices in {slice_}; give a topology that it supports")
    return topology_devices
