"""The config of a run: every field with its default and its checks.

Users write and override an `ml_collections.ConfigDict`. `default_config` returns one with every field, so that each can
be overridden on the command line. `Experiment.from_config` converts it to frozen dataclasses, which the rest of the
package takes; `Experiment.to_dict` is stored in checkpoints.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import ml_collections
import optax
from ml_collections import config_dict

from vivit_jax import optim, sharding
from vivit_jax.augment import AugmentConfig
from vivit_jax.config import finetuning
from vivit_jax.config.fields import ConfigError, check_fields, merge, paths, plain, section, tuples, upgrade
from vivit_jax.config.sections import CheckpointConfig, EvaluationConfig, InitFrom, ProfileConfig
from vivit_jax.data import catalog
from vivit_jax.data.config import DataConfig
from vivit_jax.data.paths import records_folder
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.models import MaskedViViT, PretrainConfig, ViViT, ViViTConfig
from vivit_jax.models.config import INHERITED_FIELDS
from vivit_jax.optim import OptimizerConfig
from vivit_jax.train_step import TrainProgram, build_train_program
from vivit_jax.train_step.guard import GuardConfig
from vivit_jax.train_step.losses import LossConfig
from vivit_jax.utils.checks import at_least, within

CONFIG_FILE = "config.json"  # of a run, in its workdir


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The complete, checked settings of a run.

    Attributes:
      model: fields of `ViViTConfig`, and `name` ('ViViT-B/16x2'), from which fields that are None are derived.
      input: fields of `ClipSpec` without the number of frames and the image size, which the model determines.
      num_epochs: passes over the training videos; may be a fraction. A pass takes `input.clips_per_video` clips of each
        video; a pass over a mixture takes as many videos as all its data sets have.
      peak_flops: peak FLOP/s of one device, for the model FLOP utilisation; None: known for common devices.
      compilation_cache: folder of the compilation cache: 'workdir' (`compilation_cache/` in it, or the folder of
        JAX_COMPILATION_CACHE_DIR), a path, or 'off'.
      step_timeout_seconds: a step that takes longer ends all processes of the run with stack traces, as do starting,
        evaluating and saving (limits: `distributed.watchdog.LIMITS`); 0: no limit; None: 1800 for several processes.
      derive: open fields follow from data and weights (`config.finetuning`), and the log ends with what to try next.
    """

    model: Mapping[str, Any]
    input: Mapping[str, Any]
    data: DataConfig
    augment: AugmentConfig
    init_from: InitFrom
    loss: LossConfig
    pretrain: PretrainConfig
    optimizer: OptimizerConfig
    guard: GuardConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    profile: ProfileConfig
    mesh: Mapping[str, int]  # {mesh axis: number of devices}, see `sharding.make_mesh`; -1: all remaining devices
    batch_size: int = 64  # clips in a global batch, over all devices
    num_epochs: float = 30.0
    num_steps: int | None = None  # optimizer steps of the run; replaces `num_epochs`
    label_smoothing: float = 0.0  # in [0, 1); training loss only
    log_every_steps: int = 50  # steps over which training metrics are averaged before they are logged
    norms_by_part: bool = False  # also log the norms of gradients, parameters and updates of each module of the model
    peak_flops: float | None = None
    compilation_cache: str = "workdir"
    step_timeout_seconds: float | None = None
    derive: bool = False
    seed: int = 0  # of initialisation, data order, crops, augmentation and dropout

    def __post_init__(self) -> None:
        at_least("config", self, batch_size=1, num_steps=1, log_every_steps=1, step_timeout_seconds=0, seed=0)
        within("config", self, "(0, inf)", "peak_flops", "num_epochs")
        within("config", self, "[0, 1)", "label_smoothing")
        if not self.compilation_cache:
            raise ValueError("config.compilation_cache='' must be 'workdir', 'off' or a folder")
        object.__setattr__(self, "mesh", sharding.complete_axes(self.mesh))
        if self.pretraining and self.augment.mixes:
            raise ValueError("pretrain.mask_ratio reconstructs clips: set augment.mixup and augment.cutmix to 0")
        if self.batch_size % (parts := self.optimizer.accumulate_steps):
            raise ValueError(f"batch_size={self.batch_size} does not divide into optimizer.accumulate_steps={parts}")
        if self.pretraining and self.model.get("attention") == "factorised_encoder":  # the spatial encoder alone
            object.__setattr__(self, "model", {**self.model, "temporal_layers": 0})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Checks and freezes a ConfigDict or the dict of `to_dict`; absent fields get their defaults.

        Raises ConfigError for a field that does not exist, a value out of range, or None for a field that needs one.
        """
        known = plain(default_config())
        try:
            config = upgrade(plain(config), known)
            check_fields(config, known)
            fields = merge(known, config)
            if fields["derive"]:
                fields = plain(finetuning.derive(fields))  # of unknown data, unless `vivit_jax.finetuning` did
            defaults = dict(paths(known))
            if unset := [name for name, value in paths(fields) if value is None and defaults[name] is not None]:
                raise ConfigError(f"config.{unset[0]}=None must have a value; its default is {defaults[unset[0]]!r}")
            return cls(**fields | {name: section_type(**fields[name]) for name, section_type in _SECTIONS.items()})
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that JSON can hold; the inverse of `from_config`."""
        return plain(dataclasses.asdict(self))

    @property
    def pretraining(self) -> bool:
        """Whether the run is masked pretraining, which needs no labels, instead of training a classifier."""
        return self.pretrain.mask_ratio > 0

    def dataset_heads(self) -> dict[str, int]:
        """Returns {head: classes} of the run's data: those of its records, before they are built those of the catalog.

        Raises ValueError for a data set that is neither built nor in the catalog, FileNotFoundError for a mixture with
        `unknown_classes='union'` that is not built.
        """
        data = self.data
        if data.mixture and data.unknown_classes == "union":
            from vivit_jax.data.open import open_data  # needs the training extra

            return dict(open_data(data)[0].heads)
        return dict(catalog.of_records(data.name, records_folder(data.name, data.dir)).heads)

    def model_config(self, heads: Mapping[str, int]) -> ViViTConfig:
        """Returns the model's config for a data set's heads, {head: classes}; no head for {}, and in pretraining."""
        heads = {} if self.pretraining else heads
        fields = {k: tuples(v) for k, v in self.model.items() if v is not None}
        name = fields.pop("name", None)
        fields["num_classes"] = heads["label"] if list(heads) == ["label"] else tuple(heads.items()) or None
        try:
            return ViViTConfig.from_name(name, **fields) if name else ViViTConfig(**fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.model: {error}") from error

    def module(self, config: ViViTConfig) -> ViViT | MaskedViViT:
        """Returns the model that the run trains; ValueError where its patches cannot be masked."""
        if not self.pretraining:
            return ViViT(config)
        self.pretrain.visible(config)
        return MaskedViViT(config, self.pretrain)

    def following(self, model: Mapping[str, Any]) -> Self:
        """Takes `INHERITED_FIELDS` and pre-logits layer that are None here from `model`, fields of a `ViViTConfig`."""
        inherited = (*INHERITED_FIELDS, "pool_norm", "representation_size")
        names = [name for name in inherited if self.model.get(name) is None]
        return dataclasses.replace(self, model={**self.model, **{name: model.get(name) for name in names}})

    def image_experiment(self) -> Self:
        """Returns the experiment of `init_from.image_epochs`: this one on single frames, evaluated at the end.

        A step has as many tokens as here, those of n_t frames for a clip, and warm-up as many steps, at most a tenth.
        """
        model = self.model_config({})
        n_t, *_ = model.grid
        warmup = min(self.optimizer.warmup_epochs * n_t, self.init_from.image_epochs / 10)
        image = {"num_frames": 1, "tubelet_size": (1, *model.tubelet_size[1:])}
        image |= {"tokenizer": "tubelet", "attention": "spatiotemporal"}
        return dataclasses.replace(
            self,
            model={**self.model, **image},
            init_from=InitFrom(),
            optimizer=dataclasses.replace(self.optimizer, warmup_epochs=warmup),
            evaluation=dataclasses.replace(self.evaluation, every_epochs=0.0, every_steps=None, patience=0),
            batch_size=self.batch_size * n_t,
            num_epochs=self.init_from.image_epochs,
            num_steps=None,
        )

    def clip_spec(self, model: ViViTConfig) -> ClipSpec:
        """Returns how clips are cut from videos for this model."""
        try:
            fields = {k: tuples(v) for k, v in self.input.items()}
            if model.in_channels != 3:
                raise ValueError(f"videos have 3 channels, but config.model.in_channels={model.in_channels}")
            return ClipSpec(num_frames=model.num_frames, image_size=model.image_shape, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.input: {error}") from error

    def train_program(
        self, heads: Mapping[str, int], mesh: Any, *, total_steps: int | None = None, steps_per_epoch: float = 1.0
    ) -> TrainProgram:
        """Builds model, schedule, optimizer, abstract state with shardings and the jitted train step. Compiles nothing.

        `heads`: {head: classes}; `mesh` None: one device. The schedule depends on `total_steps` and `steps_per_epoch`;
        without them the learning rate is constant, for programs that are compiled but not run. Raises ConfigError or
        ValueError for settings that do not fit together or the mesh.
        """
        model = self.module(self.model_config(heads))
        if mesh is not None:
            sharding.check_model(mesh, model.config)
        schedule = optax.constant_schedule(self.optimizer.learning_rate)
        if total_steps is not None:
            sizes = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch, "batch_size": self.batch_size}
            schedule = optim.learning_rate_schedule(self.optimizer, **sizes)
        optimizer = optim.make_optimizer(self.optimizer, schedule)
        fields = ("seed", "label_smoothing", "loss", "augment", "guard", "norms_by_part")
        options = {name: getattr(self, name) for name in fields}
        options |= {name: getattr(self.optimizer, name) for name in ("accumulate_steps", "ema_decay", "sam_rho")}
        return build_train_program(model, optimizer, schedule, mesh, pretraining=self.pretraining, **options)

    def steps_per_epoch(self, videos: int) -> float:
        """Returns the optimizer steps of a pass over this many training videos."""
        return videos * self.input["clips_per_video"] / self.batch_size

    def total_steps(self, videos: int) -> int:
        """Returns the optimizer steps of the run on this many training videos; at least 1."""
        if self.num_steps is not None:
            return self.num_steps
        return max(1, int(self.num_epochs * videos * self.input["clips_per_video"] / self.batch_size))


_SECTIONS = {f.name: f.type for f in dataclasses.fields(Experiment) if dataclasses.is_dataclass(f.type)}


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default (None is a typed placeholder); config files start from it."""
    config = section(Experiment, without=("model", "input", "mesh", *_SECTIONS))
    config.mesh = ml_collections.ConfigDict(sharding.complete_axes({}))
    config.model = section(ViViTConfig, without=("num_classes",), all_optional=True)
    config.model["name"] = config_dict.placeholder(str)
    config.input = section(ClipSpec, without=("num_frames", "image_size"))  # which the model determines
    for name, section_type in _SECTIONS.items():
        config[name] = section(section_type)
    return config
