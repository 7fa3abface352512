"""The steps of `vivit_jax.train`, compiled with abstract state and batch for devices that need not exist."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.compile import hlo
from vivit_jax.config.experiment import Experiment
from vivit_jax.cost.counts import abstract_batch, forward_count, train_count
from vivit_jax.models import ViViTConfig, abstract_params, inference
from vivit_jax.train_step import TrainProgram, make_eval_step, remat
from vivit_jax.utils import devices

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_REQUIRED = re.compile(r"([\d.]+)([KMG]?)\)? ?(?:of|exceeds available HBM) \(?([\d.]+)([KMG]?)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for a program. Bytes are those of one device."""

    fits: bool
    # Bytes in use at the worst moment; those of the compiler's message (or the temporaries) where it does not fit.
    peak: int
    available: int | None = None  # bytes that the compiler gives to a program, where it said so
    # Bytes of state and batch, and of temporaries, where the program fits. They overlap: the sum can exceed `peak`.
    argument: int | None = None
    temporary: int | None = None
    traffic: tuple[hlo.Traffic, ...] = ()  # the largest first
    hbm: int = 0  # bytes read from and written to the device's memory in one run; 0: unknown, as is `traffic`
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
        seconds, message = time.perf_counter() - began, str(error).partition("\n")[0]
        return Compiled(False, *parse_out_of_memory(str(error)), seconds=seconds, message=message)
    seconds = time.perf_counter() - began
    analysis, text = executable.memory_analysis(), ""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # jaxlib cannot read all programs of a newer libtpu
        text = executable.as_text()
    return Compiled(
        True,
        devices.peak_bytes(analysis, mesh.devices.flat[0].platform),
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


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on the devices of a slice."""

    experiment: Experiment
    heads: Mapping[str, int]  # {head: classes} of its data set
    mesh: Any  # the config's mesh over the slice's devices

    @classmethod
    def on(cls, experiment: Experiment, heads: Mapping[str, int], devices: Sequence[Any]) -> Self:
        """Builds the config's mesh on these devices; ValueError where it does not cover them or divide the model."""
        mesh = sharding.make_mesh(experiment.mesh, devices)
        sharding.check_model(mesh, experiment.model_config(heads))
        if experiment.pretraining:  # evaluated on one clip of each video
            one = dataclasses.replace(experiment.evaluation, temporal_views=1, spatial_views=1)
            experiment = dataclasses.replace(experiment, evaluation=one)
        return cls(experiment, heads, mesh)

    @property
    def batch_shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def clips_per_shard(self, step: str) -> int:
        """Returns the clips ('train') or videos ('eval') per batch shard; ValueError where that is no whole number."""
        size, name, microbatches = self.experiment.evaluation.batch_size, "evaluation.batch_size", 1
        if step == "train":
            size, name = self.experiment.batch_size, "batch_size"
            microbatches = self.experiment.optimizer.accumulate_steps
        sharding.check_batch_size(self.mesh, size, name, microbatches)
        return size // self.batch_shards

    def lower_train(self, clips: int, program: TrainProgram | None = None) -> Any:
        """Lowers the training step, of `program` if given, with `clips` clips per batch shard."""
        program = program or self.experiment.train_program(self.heads, self.mesh)
        batch = abstract_batch(program.model.config, clips * self.batch_shards)
        batch = sharding.abstract_like(batch, jax.tree.map(lambda _: sharding.batch_sharding(self.mesh), batch))
        with jax.set_mesh(self.mesh):
            return program.step.lower(program.state, batch)

    def compile_train(self, clips: int, log: Callable[[str], None] = lambda _: None) -> tuple[ViViTConfig, Compiled]:
        """Compiles the training step, with the least recomputation that fits, for so many clips per batch shard.

        Returns its model's config, too; `log` receives a line for each choice that does not fit.
        """

        def compile_with(program: TrainProgram) -> Compiled:
            compiled, model = compile_ahead(self.lower_train(clips, program), self.mesh), program.model.config
            if not compiled.fits:
                log(f"remat {model.remat}, scan_layers {model.scan_layers}: {compiled.peak / 2**30:.1f} GiB do not fit")
            return compiled

        program, platform = self.experiment.train_program(self.heads, self.mesh), self.mesh.devices.flat[0].platform
        program, compiled = remat.least(program, platform, compile_with, lambda compiled: compiled.fits)
        return program.model.config, compiled

    def lower_eval(self, videos: int) -> Any:
        """Lowers the evaluation step with `videos` videos per batch shard, all views."""
        platform = self.mesh.devices.flat[0].platform
        config = self.experiment.model_config(self.heads)
        config = inference.inference_config(config, self.experiment.evaluation.dtype, platform)
        model = self.experiment.module(config)

        def apply(variables: Any, clips: jax.Array, train: bool) -> Any:
            out = model.apply(variables, clips, train=train, rngs={"dropout": jax.random.key(0)})
            return out["loss"] if self.experiment.pretraining else out

        params = jax.eval_shape(lambda params: inference.cast_params(params, config), abstract_params(config, model))
        shardings = sharding.state_sharding(self.mesh, {"params": params})["params"]
        shape = (videos * self.batch_shards, self.experiment.evaluation.views, *config.video_shape)
        video = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding.batch_sharding(self.mesh))
        step = inference.jit(make_eval_step(apply, inference.clips_at_once(config, platform)), config, self.mesh)
        with jax.set_mesh(self.mesh):
            return step.lower(sharding.abstract_like(params, shardings), {"video": video})

    def train_work(self, clips: int, model: ViViTConfig) -> float:
        """Returns the FLOPs of a training step on one device, recomputation included, by XLA's count (`train_count`).

        The counted program has plain attention, since kernels report no FLOPs. `model` says what is recomputed.
        """
        per_clip, per_step = train_count(self.experiment, model)
        return 2 * (per_clip * clips * self.batch_shards + per_step) / self.mesh.size

    def eval_work(self, videos: int) -> float:
        """Returns the FLOPs of an evaluation step on one device, all views of `videos` videos per batch shard."""
        clips = videos * self.batch_shards * self.experiment.evaluation.views
        count = forward_count(self.experiment.model_config(self.heads), self.experiment.pretrain)
        return 2 * clips * count / self.mesh.size
