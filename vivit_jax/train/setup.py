"""Everything that a run derives from its config and data before the first step; config errors show here."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.sharding import Mesh

from vivit_jax import augment, convert, distributed, sharding
from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.preprocessing import KEY, Preprocessing
from vivit_jax.config.sections import EMA
from vivit_jax.cost.counts import abstract_batch
from vivit_jax.data import pipeline
from vivit_jax.data.config import DataConfig
from vivit_jax.data.open import open_data
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.selection.training_set import TrainingSet, relabel
from vivit_jax.evaluation.evaluator import Evaluator, MaskedEvaluator
from vivit_jax.evaluation.metrics import accuracy_names, scalar_name
from vivit_jax.train_step import TrainProgram
from vivit_jax.utils import devices
from vivit_jax.utils.class_names import match

# Fields of `config.data` with which a user asks for other videos.
_SELECTION = ("name", "train_split", "mixture", "unknown_classes", "subset")
_DIGESTS = {"videos": "the names or the order of the videos", "labels": "the labels", "records": "the stored frames"}
_ALLOWED = "--config.data.allow_changed=True"


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """A run before its first step. Nothing is compiled or allocated on the devices yet."""

    experiment: Experiment  # with the model fields that pretrained weights or checkpoints determine
    mesh: Mesh
    train_set: TrainingSet
    eval_set: RecordSplit
    clip_spec: ClipSpec
    program: TrainProgram
    total_steps: int
    eval_interval: int  # steps between two evaluations; 0: only at the end
    resumed: bool = False  # whether the workdir has a checkpoint

    @functools.cached_property
    def checkpoint_metadata(self) -> Mapping[str, Any]:
        """What every checkpoint stores beside the state: config, classes, preprocessing, data. Imports TensorFlow."""
        train_set = self.train_set
        preprocessing = Preprocessing(self.clip_spec, **self.eval_set.stored_frames())
        return {
            "config": self.experiment.to_dict(),
            "heads": dict(train_set.heads),
            "class_names": {head: list(names) for head, names in train_set.class_names.items()},
            "multi_label": sorted(train_set.multi_label),
            KEY: preprocessing.to_dict(),
            "data": {
                "dataset": self.experiment.data.name,
                "examples": train_set.num_videos,
                "order": train_set.fingerprint(self.experiment.seed, self.clip_spec),
                "index": train_set.digests(),
                "held_out": self.eval_set.digests(),
            },
        }

    def is_sound(self, losses: Iterable[float]) -> bool:
        """Returns whether losses, of a step or of an evaluation, are at most ten times that of guessing; NaN is not."""
        if self.experiment.pretraining:  # guessing the mean of each tubelet's pixels has 1
            return all(loss <= 10 for loss in losses)
        config, heads = self.experiment.loss, self.train_set.heads
        guess = {head: math.log(n) if config.name == "softmax" else n * math.log(2) for head, n in heads.items()}
        limit = 10 * sum(max(weight, 1.0) * guess[head] for head, weight in config.weights(heads).items())
        return all(loss <= limit for loss in losses)

    def train_batches(self, start_step: int) -> Any:
        """Returns the endless training stream after `start_step` steps, this process's rows."""
        size, seed, data = self.experiment.batch_size, self.experiment.seed, self.experiment.data
        rows = sharding.process_rows(self.mesh, size)
        batches = pipeline.train_batches(self.train_set, self.clip_spec, size, seed, start_step, rows, data)
        logging.info("Training on %s. Clips: %s", self.train_set, batches.description)
        return batches

    def place_batch(self, batch: Mapping[str, Any]) -> Any:
        """Places this process's rows of a training batch on the mesh, as the training step takes it.

        Resizes the clips there if they are not yet, by a program of its own: the step is the same either way.
        """
        placed = sharding.place_batch(batch, self.mesh, self.experiment.batch_size)
        if "window" in placed:
            placed["video"] = self._resize(placed["video"], placed.pop("window"))
        return {name: placed[name] for name in ("video", "label", "mask")}

    @functools.cached_property
    def _resize(self) -> Any:
        resize = functools.partial(augment.resize_windows, size=self.clip_spec.image_size)
        return jax.jit(resize, out_shardings=sharding.batch_sharding(self.mesh))

    def abstract_batch(self) -> Any:
        """Returns the result of `place_batch` as `jax.ShapeDtypeStruct`s."""
        clips, labels = self.experiment.batch_size, {}
        for head, classes in self.train_set.heads.items():
            several = head in self.train_set.multi_label
            shape, dtype = ((clips, classes), jnp.float32) if several else ((clips,), jnp.int32)
            labels[head] = jax.ShapeDtypeStruct(shape, dtype)
        batch = {**abstract_batch(self.program.model.config, clips), "label": labels}
        return sharding.abstract_like(batch, jax.tree.map(lambda _: sharding.batch_sharding(self.mesh), batch))

    def make_evaluator(self, num_videos: int | None, on_training_set: bool = False) -> Evaluator | MaskedEvaluator:
        """Returns the evaluation on so many videos (None: all) of `eval_set`, or of its data set's training videos."""
        names, name = self.train_set.names, self.experiment.data.name
        trained = self.train_set.splits[names.index(name) if name in names else 0]
        data = trained if on_training_set else self.eval_set, self.clip_spec
        kind = MaskedEvaluator if self.experiment.pretraining else Evaluator
        return kind(self.program.model, self.mesh, self.experiment, *data, videos=num_videos)


def set_up(experiment: Experiment, workdir: epath.PathLike) -> TrainSetup:
    """Builds the `TrainSetup` of a run; reads, but does not write, its workdir."""
    # Devices.
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.batch_size, "batch_size", experiment.optimizer.accumulate_steps)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    if (clips := experiment.input["clips_per_video"]) > 1 and experiment.augment.mixes:
        problem = f"input.clips_per_video={clips} makes the clips of a video neighbours in the batch"
        raise ConfigError(f"{problem}, which would mix with each other: set augment.mixup and augment.cutmix to 0")

    # Data.
    with distributed.process_0_first():
        train_set, eval_set = open_data(experiment.data)
    if experiment.pretraining:
        train_set, eval_set = train_set.relabelled({}), relabel(eval_set, {})
    elif not train_set.heads:
        way_out = "give them labels (docs/data.md), or pretrain a model on them with config.pretrain.mask_ratio=0.9"
        raise ConfigError(f"the videos of {experiment.data.name} have no labels: {way_out}")
    checkpoint_metadata = checkpointing.latest_metadata(workdir)
    if checkpoint_metadata is not None:
        check_resumed_batch_size(experiment, checkpoint_metadata)
        train_set, eval_set = follow_checkpoint(train_set, eval_set, experiment.data, checkpoint_metadata)
    check_best_metric(experiment, eval_set.heads, eval_set.multi_label)
    if not experiment.pretraining:
        experiment.loss.weights(train_set.heads)  # raises for heads that do not exist
    total_steps = experiment.total_steps(train_set.num_videos)
    steps_per_epoch = experiment.steps_per_epoch(train_set.num_videos)

    # Model, schedule, optimizer, train step.
    experiment = inherit_model_fields(experiment, train_set.heads, checkpoint_metadata)
    program = experiment.train_program(train_set.heads, mesh, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    clip_spec = experiment.clip_spec(program.model.config)
    devices.warn_of_large_model(program.model.config.name, program.model.config.hidden_size)
    interval = experiment.evaluation.interval(steps_per_epoch)
    resumed = checkpoint_metadata is not None
    return TrainSetup(experiment, mesh, train_set, eval_set, clip_spec, program, total_steps, interval, resumed)


def inherit_model_fields(
    experiment: Experiment, heads: Mapping[str, int], checkpoint_metadata: Mapping[str, Any] | None
) -> Experiment:
    """Returns the experiment with the model fields that its pretrained weights, or its own checkpoints, determine.

    A resumed run, with the `checkpoint_metadata` of its newest checkpoint, no longer needs its pretrained weights.
    """
    if checkpoint_metadata is not None:
        return experiment.following(checkpoint_metadata["config"]["model"])
    if experiment.init_from.path is None:
        return experiment
    inherited = convert.model_for(experiment.init_from.path, experiment.model_config(heads), experiment.init_from)
    for name in convert.INHERITED_FIELDS:
        configured = experiment.model.get(name)
        if configured is not None and configured != getattr(inherited, name):
            theirs = f"the weights in {experiment.init_from.path} were trained with {getattr(inherited, name)!r}"
            raise ConfigError(f"config.model.{name}={configured!r}, but {theirs}; leave it unset to use theirs")
    return experiment.following(inherited.to_dict())


def check_best_metric(experiment: Experiment, heads: Mapping[str, int], multi_label: frozenset[str]) -> None:
    """Raises ConfigError unless the evaluation of a data set measures `checkpoint.best_metric`."""
    measured = accuracy_names(heads, multi_label) + [scalar_name(head, "loss", heads) for head in heads] or ["loss"]
    if experiment.optimizer.ema_decay:
        measured += [EMA + name for name in measured]
    name = experiment.checkpoint.best_metric
    if name not in measured:
        no_ema = " (config.optimizer.ema_decay is off, so no weights are averaged)" if name.startswith(EMA) else ""
        where = f"is not measured on {experiment.data.name}{no_ema}"
        raise ConfigError(f"checkpoint.best_metric={name!r} {where}; choose one of {', '.join(measured)}")


def check_resumed_batch_size(experiment: Experiment, metadata: Mapping[str, Any]) -> None:
    """Raises ConfigError, or with `data.allow_changed` warns, where the checkpoint had another batch size.

    The position in the data is step x batch size: clips would be left out, or come twice.
    """
    size, before, step = experiment.batch_size, metadata["config"].get("batch_size"), metadata.get("step", 0)
    if not step or size == before:
        return
    change = f"{abs(size - before) * step} clips are {'left out' if size > before else 'repeated'}"
    message = f"config.batch_size={size}, but the run's checkpoint was trained with {before}: {change}"
    if not experiment.data.allow_changed:
        raise ConfigError(f"{message}. Use {before}, or accept that with {_ALLOWED}")
    logging.warning("%s (%s)", message, _ALLOWED)


def follow_checkpoint(
    train_set: TrainingSet, eval_set: RecordSplit, data: DataConfig, metadata: Mapping[str, Any]
) -> tuple[TrainingSet, RecordSplit]:
    """Returns the data of a run with the class ids of its checkpoint, whose `metadata` are given.

    Raises:
      ConfigError: other classes, or, unless `data.allow_changed`, other videos, where the config asks for the same.
    """
    if not metadata["data"]:  # converted weights, which the restore refuses
        return train_set, eval_set
    way_out = "put the records of the run back, train in another workdir"
    stored, names, problems = metadata["class_names"], {}, []
    for head in dict.fromkeys([*train_set.class_names, *stored]):
        theirs, ours = list(stored.get(head, ())), list(train_set.class_names.get(head, ()))
        found = match(theirs, ours, "the checkpoint")
        same = found.complete and len(theirs) == len(ours)
        names[head] = theirs if same and found.named else ours
        if not same:
            problems.append(f"head {head!r} has {found.how}")
        elif ours != names[head]:
            logging.warning("Classes of head %r: %s; they keep the ids of the checkpoint.", head, found.how)
    if problems:
        message = "\n".join(["the classes of the data are not those of the run's checkpoint", *problems])
        renamed = metadata["heads"] == train_set.heads
        if not (data.allow_changed and renamed):
            advice = f"{way_out} (--config.init_from.path takes its weights over)"
            raise ConfigError(f"{message}\n{advice}" + (f", or, if only names changed, {_ALLOWED}" if renamed else ""))
        logging.warning("%s (%s)", message, _ALLOWED)
    else:
        train_set, eval_set = train_set.relabelled(names), relabel(eval_set, names)

    before = Experiment.from_config(metadata["config"]).data
    if any(getattr(before, field) != getattr(data, field) for field in _SELECTION):
        return train_set, eval_set  # other data by another config, of which the start warns
    index, digests = metadata["data"].get("index"), train_set.digests()
    changed = [what for name, what in _DIGESTS.items() if index and index[name] != digests[name]]
    if (count := metadata["data"]["examples"]) != train_set.num_videos:
        changed.insert(0, f"the number of videos ({count} -> {train_set.num_videos})")
    if changed:
        message = f"training data of {data.name} are not those of the run's checkpoint: {', '.join(changed)} changed"
        if not data.allow_changed:
            raise ConfigError(f"{message}; {way_out}, or continue on these with {_ALLOWED}")
        logging.warning("%s (%s)", message, _ALLOWED)
    held_out = metadata["data"].get("held_out")
    if before.eval_split == data.eval_split and held_out not in (None, eval_set.digests()):
        changed = "are not those of the run's checkpoint: metrics before and after cannot be compared"
        logging.warning("The videos or labels of split %s %s", data.eval_split, changed)
    return train_set, eval_set
