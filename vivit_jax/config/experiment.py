"""Every field of a config, with its default and its check: one experiment, from the command line to the checkpoint.

`ml_collections.ConfigDict` is what users write and override; it stops here. `default_config()` gives a ConfigDict that
holds every field, so that each can be overridden on the command line; `Experiment.from_config` turns it into frozen
dataclasses, naming every field that does not exist; `Experiment.to_dict` is what a checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from vivit_jax import optim, sharding
from vivit_jax.augment import AugmentConfig
from vivit_jax.config.fields import ConfigError, check_fields, merge, plain, section, tuples
from vivit_jax.config.init_from import InitFrom
from vivit_jax.config.renamed import upgrade
from vivit_jax.config.sections import CheckpointConfig, EvaluationConfig, ProfileConfig
from vivit_jax.data.config import DataConfig
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.models.config import INHERITED_FIELDS
from vivit_jax.optim import OptimizerConfig
from vivit_jax.train_step import TrainProgram, build_train_program
from vivit_jax.train_step.guard import GuardConfig
from vivit_jax.train_step.losses import LossConfig
from vivit_jax.utils.checks import at_least

__all__ = [
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "Experiment",
    "ProfileConfig",
    "default_config",
]

MESH_AXES = ("data", "fsdp", "tensor", "sequence")  # as `sharding.AXES`, which a config file need not import
CACHES = ("workdir", "off")

# Fields of ClipSpec that the model decides.
_OF_THE_MODEL = ("num_frames", "image_size")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole run.

    Attributes:
      model: fields of `ViViTConfig`, and `name` ('ViViT-B/16x2'), which gives those that are None.
      input: fields of `ClipSpec` but frames and size, which are the model's.
      data, augment, init_from, loss, optimizer, guard, evaluation, checkpoint, profile: as their classes say.
      mesh: {axis: devices along it}, axes `data`, `fsdp`, `tensor` and `sequence`; -1 for all that are left, which is
        what `data` has where no other axis has it.
      batch_size: clips in a global batch, over all devices.
      num_epochs: passes over the training videos, a fraction allowed; `num_steps`, where given, wins. A pass takes
        `input.clips_per_video` clips of each; of a mixture, it is as many videos as all its data sets have.
      num_steps: optimizer steps of the run, or None.
      label_smoothing: in [0, 1); training loss only.
      log_every_steps: training metrics are averaged over so many steps and written.
      norms_by_part: also log the norms of gradients, parameters and updates of each part of the model.
      peak_flops: FLOP/s of one device at its best, for the model FLOP utilisation; None: as `telemetry.PEAK_FLOPS` has
        it for the device.
      compilation_cache: where compiled programs are kept for the next start: 'workdir' (its `compilation_cache/`, or
        the folder that JAX_COMPILATION_CACHE_DIR names), a folder, or 'off'.
      step_timeout_seconds: a step that takes longer ends the process with a trace of where it hung; 0: it may take as
        long as it likes. The first step, which compiles, and evaluations are not timed.
      seed: of initialisation, order, crops, augmentation, dropout.
    """

    model: Mapping[str, Any]
    input: Mapping[str, Any]
    data: DataConfig
    augment: AugmentConfig
    init_from: InitFrom
    loss: LossConfig
    optimizer: OptimizerConfig
    guard: GuardConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    profile: ProfileConfig
    mesh: Mapping[str, int]
    batch_size: int = 64
    num_epochs: float = 30.0
    num_steps: int | None = None
    label_smoothing: float = 0.0
    log_every_steps: int = 50
    norms_by_part: bool = False
    peak_flops: float | None = None
    compilation_cache: str = "workdir"
    step_timeout_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("config", self, batch_size=1, num_steps=1, log_every_steps=1, step_timeout_seconds=0, seed=0)
        if self.peak_flops is not None and not self.peak_flops > 0:
            raise ValueError(f"config.peak_flops={self.peak_flops} must be greater than 0: FLOP/s of one device")
        if not self.compilation_cache:
            raise ValueError(f"config.compilation_cache='' must be {' or '.join(map(repr, CACHES))} or a folder")
        # Axes that are not named have the sizes that `sharding.make_mesh` gives them: one mesh, one way to write it.
        others = dict.fromkeys(MESH_AXES, 1) | {"data": 1 if -1 in self.mesh.values() else -1}
        object.__setattr__(self, "mesh", others | dict(self.mesh))
        if self.num_epochs <= 0:
            raise ValueError(f"config.num_epochs={self.num_epochs} must be greater than 0")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"config.label_smoothing={self.label_smoothing} must lie in [0, 1)")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Experiment:
        """Checks a config and freezes it.

        Args:
          config: a ConfigDict, or the dict of `to_dict`.

        Raises:
          ConfigError: an unknown or missing field or a value out of range, with the way out.
        """
        known = plain(default_config())
        try:
            config = upgrade(plain(config), known)
            check_fields(config, known)
            filled = merge(known, config)
            return cls(
                **{
                    name: _SECTIONS.get(name, lambda **fields: fields)(**value) if isinstance(value, dict) else value
                    for name, value in filled.items()
                }
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; `from_config` takes it back."""
        return plain(dataclasses.asdict(self))

    def model_config(self, heads: Mapping[str, int]) -> ViViTConfig:
        """The model for a data set's heads, {head: classes}; no head for {}.

        Raises:
          ConfigError: what `ViViTConfig` does not take.
        """
        fields = {k: tuples(v) for k, v in self.model.items() if v is not None}
        name = fields.pop("name", None)
        classes = next(iter(heads.values())) if list(heads) == ["label"] else tuple(heads.items()) or None
        try:
            if name:
                return ViViTConfig.from_name(name, num_classes=classes, **fields)
            return ViViTConfig(num_classes=classes, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.model: {error}") from error

    def following(self, model: Mapping[str, Any]) -> Experiment:
        """Fills `INHERITED_FIELDS` and the pre-logits layer, where the config leaves them open, from the fields `model`
        of a `ViViTConfig`."""
        names = (*INHERITED_FIELDS, "representation_size")
        taken = {n: model[n] for n in names if self.model.get(n) is None and model.get(n) is not None}
        return dataclasses.replace(self, model={**self.model, **taken})

    def clip_spec(self, model: ViViTConfig) -> ClipSpec:
        """How clips are cut for this model."""
        try:
            fields = {k: tuples(v) for k, v in self.input.items()}
            return ClipSpec(num_frames=model.num_frames, image_size=model.image_shape, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.input: {error}") from error

    def step_options(self) -> dict[str, Any]:
        """What `train_step.make_train_step` wants to know of the config, as its keyword arguments."""
        return {
            "seed": self.seed,
            "label_smoothing": self.label_smoothing,
            "loss": self.loss,
            "augment": self.augment,
            "guard": self.guard,
            "accumulate_steps": self.optimizer.accumulate_steps,
            "ema_decay": self.optimizer.ema_decay,
            "sam_rho": self.optimizer.sam_rho,
            "norms_by_part": self.norms_by_part,
        }

    def train_program(
        self,
        heads: Mapping[str, int],
        mesh: Any,
        *,
        total_steps: int = 10**9,
        steps_per_epoch: float = 1e3,
    ) -> TrainProgram:
        """Builds model, schedule, optimizer, abstract state with shardings and the jitted train step. Compiles nothing.

        Args:
          heads: {head: classes}.
          mesh: from `sharding.make_mesh`; None: one device.
          total_steps, steps_per_epoch: of the run, for the schedule. The defaults serve programs that are compiled but
            not run: their memory does not depend on them.

        Raises:
          ConfigError, ValueError: settings of model, schedule or optimizer that do not fit together or the mesh.
        """
        model = ViViT(self.model_config(heads))
        if mesh is not None:
            sharding.check_model(mesh, model.config)
        schedule = optim.learning_rate_schedule(
            self.optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch, batch_size=self.batch_size
        )
        optimizer = optim.make_optimizer(self.optimizer, schedule)
        return build_train_program(model, optimizer, schedule, mesh, **self.step_options())

    def steps_per_epoch(self, videos: int) -> float:
        """Optimizer steps of a pass over so many training videos."""
        return videos * self.input["clips_per_video"] / self.batch_size

    def total_steps(self, videos: int) -> int:
        """Optimizer steps of the run over so many training videos; at least 1."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, int(self.num_epochs * videos * self.input["clips_per_video"] / self.batch_size))


_SECTIONS = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "init_from": InitFrom,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "guard": GuardConfig,
    "evaluation": EvaluationConfig,
    "checkpoint": CheckpointConfig,
    "profile": ProfileConfig,
}


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default; config files start from it. Fields without one are typed placeholders."""
    config = section(Experiment, without=("model", "input", "mesh", *_SECTIONS))
    config.mesh = ml_collections.ConfigDict(dict.fromkeys(MESH_AXES, 1) | {"data": -1})
    model = section(ViViTConfig, without=("num_classes",), all_optional=True)
    model["name"] = config_dict.placeholder(str)
    config.model = model
    config.input = section(ClipSpec, without=_OF_THE_MODEL)
    for name, settings in _SECTIONS.items():
        config[name] = section(settings)
    return config
