"""The training step compiled ahead: kept for the next start, its memory told, advice where it does not fit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from vivit_jax.config.experiment import Experiment

CACHE_FOLDER = "compilation_cache"  # inside a run's workdir


class OutOfDeviceMemory(MemoryError):
    """A program that needs more memory than a device has; the message says what takes less."""


@contextlib.contextmanager
def cached(choice: str, workdir: epath.PathLike) -> Iterator[None]:
    """Keeps what is compiled inside on disk, and takes from there what an earlier start compiled.

    jax's persistent cache; a program that takes less than a second to compile is not kept, but for
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS.

    Args:
      choice: 'workdir': the workdir's `compilation_cache/`, unless JAX_COMPILATION_CACHE_DIR names a folder; 'off'; or
        a folder.
      workdir: of the run.
    """
    before = jax.config.jax_compilation_cache_dir
    if choice == "off":
        folder = None
    elif choice == "workdir":
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(epath.Path(workdir) / CACHE_FOLDER)
    else:
        folder = choice
    if folder == before:
        yield
        return
    _use(folder)
    try:
        yield
    finally:
        _use(before)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # which is opened once, with the folder of that moment


class AheadOfTime:
    """A jitted training step that is compiled with its first call, once, and says what memory it takes.

    Args:
      step: of `jax.jit`, `(state, batch) -> (state, metrics)`.
      experiment: for the advice.
    """

    def __init__(self, step: Any, experiment: Experiment):
        self._step, self._experiment = step, experiment
        self._compiled: Any = None

    def __call__(self, state: Any, batch: Any) -> Any:
        """One step; the first call returns when it is done on the devices.

        Raises:
          OutOfDeviceMemory: with the first call: the step does not fit, as the compiler or the devices say.
        """
        if self._compiled is not None:
            return self._compiled(state, batch)
        began = time.perf_counter()
        with advised("the training step", training_advice(self._experiment)):
            self._compiled = self._step.lower(state, batch).compile()
            logging.info(
                "The training step, compiled in %.1f s, takes on each device %s.",
                time.perf_counter() - began,
                memory_in_words(self._compiled.memory_analysis(), jax.default_backend(), _limit()),
            )
            return jax.block_until_ready(self._compiled(state, batch))


def peak_bytes(memory: Any, platform: str) -> int:
    """Bytes of a device that are in use at a program's worst moment, the program's own code included.

    On TPU it is the compiler's `peak_memory_in_bytes`. Other backends leave the temporaries out of that figure, so
    theirs is an upper bound: arguments, results and temporaries added up, as if all were in use at once.

    Args:
      memory: of `memory_analysis()`.
      platform: of the device: 'tpu', 'gpu' or 'cpu'.
    """
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak, code = memory.peak_memory_in_bytes, memory.generated_code_size_in_bytes
    if platform == "tpu" and peak >= arguments:  # less than what is there before it runs: not told
        return peak + code
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # donated buffers are not counted twice
    return max(arguments + temporary + results, peak) + code


def memory_in_words(memory: Any, platform: str, limit: int | None = None) -> str:
    """What the compiler says of a program's memory, in words.

    Args:
      memory: of `memory_analysis()`; None where a backend does not tell.
      platform: of the devices: 'tpu', 'gpu' or 'cpu'.
      limit: bytes that there are.
    """
    if memory is None:
        return "an amount of memory that this backend does not tell"
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    of = f" of {_size(limit)}" if limit else ""
    return (
        f"at most {_size(peak_bytes(memory, platform))}{of}: state and batch {_size(memory.argument_size_in_bytes)}, "
        f"temporaries {_size(memory.temp_size_in_bytes)}, new results {_size(results)}"
    )


@contextlib.contextmanager
def advised(what: str, advice: Sequence[str]) -> Iterator[None]:
    """Turns XLA's error of too little memory into advice.

    Args:
      what: is compiled or runs inside, for the message.
      advice: what takes less memory, a line each.

    Raises:
      OutOfDeviceMemory: what runs inside does not fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        limit = _limit()
        has = f" ({_size(limit)} on each)" if limit else ""
        raise OutOfDeviceMemory(
            f"{what} does not fit the memory of the devices{has}. What takes less:\n  "
            + "\n  ".join(advice)
            + f"\nXLA says: {text.strip().splitlines()[0][:300]}"
        ) from error


def training_advice(experiment: Experiment, devices: int | None = None) -> list[str]:
    """What makes a training step smaller and is not done yet, the cheapest first; for so many devices, or all here."""
    devices = devices or jax.device_count()
    model, mesh, size = experiment.model, experiment.mesh, experiment.batch_size
    accumulate = getattr(experiment.optimizer, "accumulate_steps", 1)
    lines = []
    if model.get("dtype") in (None, "float32"):
        lines.append("config.model.dtype=bfloat16: half of the activations' bytes")
    if model.get("remat") != "full":
        lines.append("config.model.remat=full: a layer's inputs are kept and the rest is computed again (a third more)")
    if not model.get("scan_layers"):
        lines.append("config.model.scan_layers=True: with remat, so that memory is taken for one layer at a time")
    ways = max(1, devices // max(1, mesh["tensor"] * mesh["sequence"]))
    if size // accumulate > ways:
        lines.append(
            f"config.optimizer.accumulate_steps={2 * accumulate}: the same batch of {size} in more parts, or "
            f"config.batch_size={max(ways, size // 2 // ways * ways)}"
        )
    if devices > 1 and mesh["fsdp"] == 1:
        lines.append("config.mesh.data=1 --config.mesh.fsdp=-1: parameters and optimizer state split over the devices")
    if devices > 1 and mesh["tensor"] == 1 and mesh["sequence"] == 1:
        lines.append("config.mesh.tensor=2 or config.mesh.sequence=2: each clip split over devices")
    return [*lines, "more devices, or a smaller model or clip (config.model.num_frames, config.model.image_size)"]


def evaluation_advice(experiment: Experiment) -> list[str]:
    """What makes an evaluation smaller."""
    return [f"config.evaluation.batch_size below {experiment.evaluation.batch_size}, or config.model.dtype=bfloat16"]


def _limit() -> int | None:
    """Bytes that a program may take on a device; None where the backend does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats or {}).get("bytes_limit")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
