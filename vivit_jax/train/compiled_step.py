"""Ahead-of-time compilation of the train step: compilation cache, memory report, advice when out of memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from vivit_jax.config.experiment import Experiment

CACHE_FOLDER = "compilation_cache"  # inside a run's workdir


class OutOfDeviceMemory(MemoryError):
    """A program needs more memory than a device has; the message says what reduces it."""


@contextlib.contextmanager
def compilation_cache(choice: str, workdir: epath.PathLike) -> Iterator[None]:
    """Uses jax's persistent compilation cache inside the context.

    Programs that compile in less than a second are not cached; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS changes that.

    `choice`: 'workdir' (its `compilation_cache/`, unless JAX_COMPILATION_CACHE_DIR names a folder), 'off' or a folder.
    """
    previous = jax.config.jax_compilation_cache_dir
    if choice == "off":
        folder = None
    elif choice == "workdir":
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(epath.Path(workdir) / CACHE_FOLDER)
    else:
        folder = choice

    def use(folder: str | None) -> None:
        if folder != jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", folder)
            jax_cache.reset_cache()  # jax opens it only once, with the folder of that moment

    use(folder)
    try:
        yield
    finally:
        use(previous)


class CompiledStep:
    """Compiles a jitted `(state, batch) -> (state, metrics)` with its first call, and logs the memory it takes."""

    def __init__(self, step: Any, experiment: Experiment):
        self._step, self._experiment = step, experiment
        self._compiled: Any = None

    def __call__(self, state: Any, batch: Any) -> Any:
        """Dispatches one step. The first call waits for the devices; it may raise OutOfDeviceMemory."""
        if self._compiled is not None:
            return self._compiled(state, batch)
        began = time.perf_counter()
        with oom_advice("the train step", training_advice(self._experiment)):
            self._compiled = self._step.lower(state, batch).compile()
            logging.info(
                "The train step, compiled in %.1f s, takes on each device %s.",
                time.perf_counter() - began,
                format_memory(self._compiled.memory_analysis(), jax.default_backend(), _limit()),
            )
            return jax.block_until_ready(self._compiled(state, batch))


def peak_bytes(memory: Any, platform: str) -> int:
    """Returns the peak memory of a program on each device in bytes, its code included.

    On 'tpu' it is the compiler's `peak_memory_in_bytes`. Other backends leave the temporaries out of it, so theirs is
    an upper bound: the sum of arguments, results and temporaries.
    """
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak, code = memory.peak_memory_in_bytes, memory.generated_code_size_in_bytes
    if platform == "tpu" and peak >= arguments:  # less than the arguments: not reported
        return peak + code
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # donated buffers are not counted twice
    return max(arguments + temporary + results, peak) + code


def format_memory(memory: Any, platform: str, limit: int | None = None) -> str:
    """Formats a `memory_analysis()` (None: not reported) for the log; `limit` is the bytes available on a device."""
    if memory is None:
        return "an amount of memory that this backend does not report"
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    of = f" of {_size(limit)}" if limit else ""
    return (
        f"at most {_size(peak_bytes(memory, platform))}{of}: state and batch {_size(memory.argument_size_in_bytes)}, "
        f"temporaries {_size(memory.temp_size_in_bytes)}, new results {_size(results)}"
    )


@contextlib.contextmanager
def oom_advice(what: str, advice: Sequence[str]) -> Iterator[None]:
    """Turns XLA's out-of-memory error in `what` into an `OutOfDeviceMemory` with lines of advice."""
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
    """Returns what would reduce the memory of the train step and is not set yet, cheapest first."""
    devices = devices or jax.device_count()
    model, mesh, size = experiment.model, experiment.mesh, experiment.batch_size
    accumulate = experiment.optimizer.accumulate_steps
    lines = []
    if model.get("dtype") in (None, "float32"):
        lines.append("config.model.dtype=bfloat16: half of the activations' bytes")
    if model.get("remat") != "full":
        lines.append("config.model.remat=full: keep the inputs of each layer, recompute the rest (a third more work)")
    if not model.get("scan_layers"):
        lines.append("config.model.scan_layers=True: with remat, activations of one layer at a time")
    batch_shards = max(1, devices // max(1, mesh["tensor"] * mesh["sequence"]))
    if size // accumulate > batch_shards:
        lines.append(
            f"config.optimizer.accumulate_steps={2 * accumulate}: the same batch of {size} in smaller microbatches, or "
            f"config.batch_size={max(batch_shards, size // 2 // batch_shards * batch_shards)}"
        )
    if devices > 1 and mesh["fsdp"] == 1:
        lines.append("config.mesh.data=1 --config.mesh.fsdp=-1: parameters and optimizer state split over the devices")
    if devices > 1 and mesh["tensor"] == 1 and mesh["sequence"] == 1:
        lines.append("config.mesh.tensor=2 or config.mesh.sequence=2: each clip split over devices")
    return [*lines, "more devices, or a smaller model or clip (config.model.num_frames, config.model.image_size)"]


def evaluation_advice(experiment: Experiment) -> list[str]:
    """Returns what would reduce the memory of an evaluation."""
    return [f"config.evaluation.batch_size below {experiment.evaluation.batch_size}, or config.model.dtype=bfloat16"]


def _limit() -> int | None:
    """Returns the memory available on a device in bytes; None where the backend does not report it."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats or {}).get("bytes_limit")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
