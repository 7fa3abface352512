"""`scan_layers="auto"` and `remat="auto"`: the least recomputation with which a train step fits its devices' memory.

The search compiles the step with one choice after the other, fastest first, until one fits the memory:

* GPU: unrolled layers, since a loop over the layers cost a quarter of the speed (ViViT-B, Model 2, on an H200); the
  loop last, for models that fit in no other way.
* TPU: the loop. It compiles in half of the time, and moves 1 % more bytes (docs/tpu.md).
* CPU: unrolled without recomputation, 12 to 14 % faster than the loop (jax 0.10 and 0.12, small models on two cores
  with AMX); else the loop, because remat saves memory there only in a loop.

Without a backward pass there is nothing to recompute; `ViViTConfig` says what `auto` means there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from vivit_jax.models.config import AUTO, REMATS
from vivit_jax.train_step.step import TrainProgram

T = TypeVar("T")
# Of the memory of a device, by platform: the rest is for batches in advance and, where programs allocate what they need
# at run time, for what fragmentation makes unusable.
USABLE = {"tpu": 0.97, "gpu": 0.9, "cpu": 0.9}


class Choice(NamedTuple):
    """Values of the model's fields `scan_layers` and `remat`."""

    scan_layers: bool
    remat: str

    def __str__(self) -> str:
        return f"remat={self.remat}, scan_layers={self.scan_layers}"


_LOOP, _UNROLLED = (tuple(Choice(scan, remat) for remat in REMATS) for scan in (True, False))
FASTEST_FIRST = {"gpu": (*_UNROLLED, _LOOP[-1]), "tpu": _LOOP, "cpu": (_UNROLLED[0], *_LOOP[1:])}


def choices(config: Any, platform: str) -> tuple[Choice, ...]:
    """Returns what `auto` may become on 'cpu', 'gpu' or 'tpu', fastest first; a field that is not `auto` is kept."""
    order = FASTEST_FIRST.get(platform, FASTEST_FIRST["gpu"])
    if config.remat == AUTO:
        return order if config.scan_layers == AUTO else tuple(Choice(config.scan_layers, c.remat) for c in _LOOP)
    if config.scan_layers != AUTO:
        return (Choice(config.scan_layers, config.remat),)
    wanted = [choice for choice in order if choice.remat == config.remat]
    return tuple(dict.fromkeys([*wanted, Choice(True, config.remat)]))


def apply(program: TrainProgram, choice: Choice) -> TrainProgram:
    """Returns the program with this choice: the same state and numbers, another compiled step."""
    config = dataclasses.replace(program.model.config, **choice._asdict())
    return program.with_model(program.model.clone(config=config))


def least(
    program: TrainProgram,
    platform: str,
    compile_with: Callable[[TrainProgram], T],
    fits: Callable[[T], bool],
    start: Choice | None = None,
) -> tuple[TrainProgram, T]:
    """Returns the program with the first of its `choices` that fits, else the last, and what `compile_with` made of it.

    Choices before `start` are known not to fit.
    """
    options = choices(program.model.config, platform)
    for choice in options[options.index(start) if start in options else 0 :]:
        chosen = apply(program, choice)
        compiled = compile_with(chosen)
        if fits(compiled):
            break
    return chosen, compiled
