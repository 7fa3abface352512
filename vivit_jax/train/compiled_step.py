"""Ahead-of-time compilation of the train step: compilation cache, memory report, advice when out of memory."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from vivit_jax import distributed
from vivit_jax.config.experiment import Experiment
from vivit_jax.train_step import TrainProgram, remat
from vivit_jax.utils import devices

CACHE_FOLDER = "compilation_cache"  # inside a run's workdir
# Fields of the optimizer that change memory; rates and schedules do not.
_MEMORY_FIELDS = ("name", "momentum", "clip_norm", "weight_decay", "frozen", "accumulate_steps", "ema_decay", "sam_rho")


class OutOfDeviceMemory(MemoryError):
    """A program needs more memory than a device has; the message says what reduces it."""


@contextlib.contextmanager
def compilation_cache(choice: str, workdir: epath.PathLike) -> Iterator[None]:
    """Uses jax's persistent compilation cache inside the context.

    Programs that compile in less than 0.1 s are not cached; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS changes that.
    `choice`: 'workdir' (its `compilation_cache/`, unless JAX_COMPILATION_CACHE_DIR names a folder), 'off' or a folder.
    """
    previous, seconds = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    of_workdir = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(epath.Path(workdir) / CACHE_FOLDER)
    folder = {"off": None, "workdir": of_workdir}.get(choice, choice)

    def use(folder: str | None) -> None:
        if folder != jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", folder)
            jax_cache.reset_cache()  # jax opens it only once, with the folder of that moment

    use(folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Not jax's second: initialisation and evaluation are many programs that compile in less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", min(seconds, 0.1))
    try:
        yield
    finally:
        use(previous)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


class CompiledStep:
    """Compiles the train step of a program once, and logs the memory it takes.

    Where the model says `auto`, it compiles the least recomputation that fits (`train_step.remat`), and remembers it
    in the folder of the compilation cache, else in `workdir`.
    """

    def __init__(self, program: TrainProgram, experiment: Experiment, workdir: epath.PathLike):
        self._program, self._experiment, self._workdir = program, experiment, workdir
        self._compiled: Any = None
        self._done_one = False
        self._compiling: concurrent.futures.Future | None = None

    def start(self, mesh: Any, batch: Any) -> None:
        """Starts to compile in a thread, for a `batch` of `jax.ShapeDtypeStruct`s; without it, the first call compiles.

        XLA compiles while this process imports, restores and opens the data. In a run of several processes the first
        call compiles: they agree on the recomputation, and must communicate in one order.
        """
        if jax.process_count() > 1:
            return

        def compile_step() -> Any:
            with jax.set_mesh(mesh):  # which holds in one thread
                return self._compile(self._program.state, batch)

        pool = concurrent.futures.ThreadPoolExecutor(1, "compile-train-step")
        self._compiling = pool.submit(compile_step)
        pool.shutdown(wait=False)

    def __call__(self, state: Any, batch: Any) -> Any:
        """Dispatches one step. The first call waits for the devices; it may raise OutOfDeviceMemory.

        A later batch of other shapes or types raises ValueError: it would be compiled again.
        """
        if self._compiled is None:
            self.compile(state, batch)
        try:
            if self._done_one:
                return self._compiled(state, batch)
            with oom_advice("the train step", training_advice(self._experiment)):
                result = jax.block_until_ready(self._compiled(state, batch))
            self._done_one = True
            return result
        except TypeError as error:
            raise ValueError(
                f"a batch differs in shapes or types from those that the train step is compiled for, once: {error}"
            ) from error

    def compile(self, state: Any, batch: Any) -> None:
        """Compiles for these arguments, or waits for the compilation that `start` has begun."""
        with oom_advice("the train step", training_advice(self._experiment)):
            self._compiled = self._compiling.result() if self._compiling else self._compile(state, batch)

    def _compile(self, state: Any, batch: Any) -> Any:
        config, platform, limit = self._program.model.config, jax.default_backend(), devices.device_bytes()
        choices = remat.choices(config, platform)
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {limit >> 30} GiB"
        folder = epath.Path(jax.config.jax_compilation_cache_dir or self._workdir)
        memo = folder / f"remat-{memory_key(self._experiment, len(config.heads), device)}.json"
        start = int(distributed.gather(str(_read(memo, choices)))[0]) if len(choices) > 1 else 0

        def compile_with(program: TrainProgram) -> Any:
            began = time.perf_counter()
            choice = remat.Choice(program.model.config.scan_layers, program.model.config.remat)
            try:
                compiled = program.step.lower(state, batch).compile()
            except jax.errors.JaxRuntimeError as error:
                if choice == choices[-1] or not devices.is_out_of_memory(error):
                    raise
                logging.info("The train step does not fit the devices with %s.", choice)
                return None
            seconds, takes = time.perf_counter() - began, format_memory(compiled.memory_analysis(), platform, limit)
            logging.info("The train step (%s), compiled in %.1f s, takes on each device %s.", choice, seconds, takes)
            return compiled

        def fits(compiled: Any) -> bool:
            usable = remat.USABLE.get(platform, 0.9) * limit
            fit = compiled is not None and devices.peak_bytes(compiled.memory_analysis(), platform) <= usable
            return "False" not in distributed.gather(str(fit))  # on all processes, or on none

        program, compiled = remat.least(self._program, platform, compile_with, fits, choices[start])
        if platform == "cpu" and devices.peak_bytes(compiled.memory_analysis(), platform) < limit / 8:
            devices.keep_freed_memory()  # which may take three times the peak
        if len(choices) > 1 and jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            memo.write_text(json.dumps({name: getattr(program.model.config, name) for name in remat.Choice._fields}))
        return compiled


def memory_key(experiment: Experiment, num_heads: int, device: str) -> str:
    """Returns a hash of what decides the memory of a train step: the config without names, paths and host-side fields.

    Of the heads only their number counts: a thousand classes are four megabytes. `device`: those to compile for.
    """
    fields = experiment.to_dict()
    relevant = [fields[name] for name in ("model", "augment", "mesh", "batch_size", "pretrain")]
    relevant.append({name: fields["optimizer"][name] for name in _MEMORY_FIELDS})
    text = json.dumps([relevant, num_heads, device, jax.__version__], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(memo: epath.Path, choices: Sequence[remat.Choice]) -> int:
    """Returns the index of the choice that an earlier start found; 0 if there is none."""
    try:
        return choices.index(remat.Choice(**json.loads(memo.read_text())))
    except (OSError, ValueError, TypeError):  # no file; cut short; of another version
        return 0


def format_memory(analysis: Any, platform: str, limit: int) -> str:
    """Formats a `memory_analysis()` (None: not reported) for the log; `limit` is the bytes available on a device."""
    if analysis is None:
        return "an amount of memory that this backend does not report"
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return (
        f"at most {_size(devices.peak_bytes(analysis, platform))} of {_size(limit)}: "
        f"state and batch {_size(analysis.argument_size_in_bytes)}, "
        f"temporaries {_size(analysis.temp_size_in_bytes)}, new results {_size(results)}"
    )


@contextlib.contextmanager
def oom_advice(what: str, advice: Sequence[str]) -> Iterator[None]:
    """Turns XLA's out-of-memory error in `what` into an `OutOfDeviceMemory` with lines of advice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        raise OutOfDeviceMemory(
            f"{what} does not fit the memory of the devices ({_size(devices.device_bytes())} on each). What takes less:"
            + "\n  ".join(["", *advice])
            + f"\nXLA says: {str(error).strip().splitlines()[0][:300]}"
        ) from error


def training_advice(experiment: Experiment, devices: int | None = None) -> list[str]:
    """Returns what would reduce the memory of the train step and is not set yet, cheapest first."""
    devices = devices or jax.device_count()
    model, mesh, size = experiment.model, experiment.mesh, experiment.batch_size
    accumulate = experiment.optimizer.accumulate_steps
    lines = []
    if model.get("dtype") in (None, "float32"):
        lines.append("config.model.dtype=bfloat16: half of the activations' bytes")
    if model.get("remat") not in (None, "auto", "full"):  # auto has tried it
        lines.append("config.model.remat=full: keep the inputs of each layer, recompute the rest (a third more work)")
    if model.get("scan_layers") is False:
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
    size = experiment.evaluation.batch_size
    return [f"config.evaluation.batch_size below {size}, or config.evaluation.dtype=bfloat16"]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"
