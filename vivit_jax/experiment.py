"""Every field of a config, with its default and its check: one experiment, from the command line to the checkpoint.

`ml_collections.ConfigDict` is what users write and override; it stops here. `default_config()` gives a ConfigDict that
holds every field, so that each can be overridden on the command line; `Experiment.from_config` turns it into frozen
dataclasses, naming every field that does not exist; `Experiment.to_dict` is what a checkpoint keeps.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from vivit_jax.augment import AugmentConfig
from vivit_jax.convert.options import FOLLOWED, InitFrom
from vivit_jax.data.sampling import ClipSpec
from vivit_jax.data.subset import UNKNOWN_CLASSES, Subset
from vivit_jax.models import ViViTConfig
from vivit_jax.optim import OptimizerConfig


class ConfigError(ValueError):
    """A config that cannot be run: an unknown field, a wrong type, a value out of range."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and where.

    Attributes:
      name: as in `python -m vivit_jax.data.catalog`; the one that is evaluated.
      dir: folder of the prepared records, DIR/NAME/VERSION; the embedded data set is made there where it is absent.
      train_split, eval_split: names of splits.
      mixture: {name: weight}: data sets under `dir` that are trained on, each with a share of the clips in proportion
        to its weight. {} for `name` alone. Heads and class ids are those of `name`, by the names of the classes.
      unknown_classes: of a mixture, classes that `name` does not have: 'refuse' is an error with the list, 'drop'
        leaves their videos out, 'union' adds them to the heads.
      subset: the part of the data that is used; its `classes` hold for evaluation too.
      cache: keep the records of the training splits in memory.
      cache_gb: memory that the cache may take, in units of 2^30 bytes.
      threads: clips made at the same time; None for one a core.
      prefetch: batches made ahead.
      service: 'grpc://host:port', several with commas, of machines that make the training clips (docs/data.md).
    """

    name: str = "kinetics400"
    dir: str = "data"
    train_split: str = "train"
    eval_split: str = "validation"
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unknown_classes: str = "refuse"
    subset: Subset = dataclasses.field(default_factory=Subset)
    cache: bool = False
    cache_gb: float = 2.0
    threads: int | None = None
    prefetch: int = 2
    service: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.subset, Mapping):
            object.__setattr__(self, "subset", Subset(**self.subset))
        _at_least("data", self, cache_gb=0, prefetch=1)
        if self.threads is not None:
            _at_least("data", self, threads=1)
        for name, weight in self.mixture.items():
            if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"data.mixture[{name!r}]={weight!r} must be a number greater than 0")
        if self.unknown_classes not in UNKNOWN_CLASSES:
            raise ValueError(
                f"data.unknown_classes={self.unknown_classes!r}; choose one of {', '.join(UNKNOWN_CLASSES)}"
            )
        if self.service is not None and self.cache:
            raise ValueError("data.cache and data.service exclude each other: the service makes the clips elsewhere")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, besides after each evaluation and at the end.

    Attributes:
      every_steps: a checkpoint after so many steps.
      keep_latest, keep_best: checkpoints that stay.
      best_metric: name in the evaluation's metrics, as `top1` or `action/top1`; higher is better.
    """

    every_steps: int = 1000
    keep_latest: int = 1
    keep_best: int = 1
    best_metric: str = "top1"

    def __post_init__(self) -> None:
        _at_least("checkpoint", self, every_steps=1, keep_latest=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The views of multi-view evaluation (section 4.1).

    Attributes:
      temporal_views: clips evenly spaced over the video, at least 1.
      spatial_views: 1 (centre), 2 or 3 crops along the longer side.
      every_epochs: how often during training; 0: only at the end.
      batch_size: videos, each with all its views, in a global batch.
    """

    temporal_views: int = 4
    spatial_views: int = 3
    every_epochs: float = 1.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        _at_least("evaluation", self, temporal_views=1, every_epochs=0, batch_size=1)
        if self.spatial_views not in (1, 2, 3):
            raise ValueError(f"evaluation.spatial_views={self.spatial_views} must be 1, 2 or 3")

    @property
    def views(self) -> int:
        """Views of one video."""
        return self.temporal_views * self.spatial_views


# Fields of ClipSpec that the model decides.
_OF_THE_MODEL = ("num_frames", "image_size")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole run.

    Attributes:
      model: fields of `ViViTConfig`, and `name` ('ViViT-B/16x2'), which gives those that are None.
      input: fields of `ClipSpec` but frames and size, which are the model's.
      data, augment, init_from, optimizer, evaluation, checkpoint: as their classes say.
      mesh: {axis: devices along it}; -1 for all that are left.
      batch_size: clips in a global batch, over all devices.
      num_epochs: passes over the training videos, a fraction allowed; `num_steps`, where given, wins. A pass takes
        `input.clips_per_video` clips of each; of a mixture, it is as many videos as all its data sets have.
      num_steps: optimizer steps of the run, or None.
      label_smoothing: in [0, 1); training loss only.
      log_every_steps: training metrics are averaged over so many steps and written.
      seed: of initialisation, order, crops, augmentation, dropout.
    """

    model: Mapping[str, Any]
    input: Mapping[str, Any]
    data: DataConfig
    augment: AugmentConfig
    init_from: InitFrom
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    mesh: Mapping[str, int]
    batch_size: int = 64
    num_epochs: float = 30.0
    num_steps: int | None = None
    label_smoothing: float = 0.0
    log_every_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("config", self, batch_size=1, log_every_steps=1, seed=0)
        if self.num_steps is not None:
            _at_least("config", self, num_steps=1)
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
        config = _plain(config)
        known = _plain(default_config())
        _check_fields(config, known, "config")
        filled = _merge(known, config)
        try:
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
        return _plain(dataclasses.asdict(self))

    def model_config(self, heads: Mapping[str, int]) -> ViViTConfig:
        """The model for a data set's heads, {head: classes}; no head for {}.

        Raises:
          ConfigError: what `ViViTConfig` does not take.
        """
        fields = {k: _tuples(v) for k, v in self.model.items() if v is not None}
        name = fields.pop("name", None)
        classes = next(iter(heads.values())) if list(heads) == ["label"] else tuple(heads.items()) or None
        try:
            if name:
                return ViViTConfig.from_name(name, num_classes=classes, **fields)
            return ViViTConfig(num_classes=classes, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.model: {error}") from error

    def following(self, model: Mapping[str, Any]) -> Experiment:
        """The experiment with what weights decide about their model (`convert.options.FOLLOWED`, and the pre-logits
        layer) taken from `model`, fields of a `ViViTConfig`, wherever the config leaves them open."""
        names = (*FOLLOWED, "representation_size")
        taken = {n: model[n] for n in names if self.model.get(n) is None and model.get(n) is not None}
        return dataclasses.replace(self, model={**self.model, **taken})

    def clip_spec(self, model: ViViTConfig) -> ClipSpec:
        """How clips are cut for this model."""
        try:
            fields = {k: _tuples(v) for k, v in self.input.items()}
            return ClipSpec(num_frames=model.num_frames, image_size=model.image_shape, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.input: {error}") from error

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
    "optimizer": OptimizerConfig,
    "evaluation": EvaluationConfig,
    "checkpoint": CheckpointConfig,
}


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default; config files start from it. Fields without one are typed placeholders."""
    config = _section(Experiment, without=("model", "input", "mesh", *_SECTIONS))
    config.mesh = ml_collections.ConfigDict({"data": -1})
    model = _section(ViViTConfig, without=("num_classes",), all_optional=True)
    model["name"] = config_dict.placeholder(str)
    config.model = model
    config.input = _section(ClipSpec, without=_OF_THE_MODEL)
    for name, section in _SECTIONS.items():
        config[name] = _section(section)
    return config


def _at_least(where: str, section: Any, **limits: float) -> None:
    """Raises ValueError where a field is below its limit."""
    for field, limit in limits.items():
        if getattr(section, field) < limit:
            raise ValueError(f"{where}.{field}={getattr(section, field)} must be at least {limit}")


def _section(cls: type, without: tuple[str, ...] = (), all_optional: bool = False) -> ml_collections.ConfigDict:
    """A dataclass's fields as a ConfigDict; those that default to None, or all, as placeholders of their type."""
    section, hints = ml_collections.ConfigDict(), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            section[field.name] = _section(type(default))
        elif isinstance(default, Mapping):
            section[field.name] = ml_collections.ConfigDict(default)
        elif all_optional or default is None or default is dataclasses.MISSING:
            section[field.name] = config_dict.placeholder(_concrete(hints[field.name]))
        else:
            section[field.name] = default
    return section


def _concrete(hint: Any) -> type:
    """The type to parse a flag with: `int | None` -> int, `tuple[int, int]` -> tuple, `int | tuple[...]` -> object."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return _concrete(options[0]) if len(options) == 1 else object
    return typing.get_origin(hint) or hint


def _plain(value: Any) -> Any:
    """Nested mappings as dicts, tuples as lists: what JSON gives back."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _merge(known: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`known` with the values of `given`, which has no other fields. Groups of free names are taken whole."""
    return {
        key: _merge(value, given.get(key, {}))
        if isinstance(value, dict) and key not in ("mesh", "mixture")
        else given.get(key, value)
        for key, value in known.items()
    }


def _check_fields(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for name, value in given.items():
        if where in ("config.mesh", "config.data.mixture"):
            continue  # sharding.py knows the axes, the catalog the data sets
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {where}.{close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}.{name} does not exist; {hint}")
        if isinstance(known[name], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{name}={value!r} must be a group of fields: {', '.join(known[name])}")
            _check_fields(value, known[name], f"{where}.{name}")
