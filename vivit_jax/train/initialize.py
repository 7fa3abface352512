"""What comes before the first step: the data, the first or the restored state, what is told of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences
from vivit_jax.config.renamed import upgrade
from vivit_jax.train_step import TrainProgram, TrainState

CONFIG_FILE = "config.json"
INIT_REPORT = "init_report.txt"


def open_checkpoints(experiment: Experiment, workdir: epath.PathLike, **options: Any) -> checkpointing.Checkpoints:
    """The checkpoints of a run's workdir, kept as its config says."""
    return checkpointing.Checkpoints(
        epath.Path(workdir) / checkpointing.FOLDER,
        keep_latest=experiment.checkpoint.keep_latest,
        keep_best=experiment.checkpoint.keep_best,
        best_metric=experiment.checkpoint.best_metric,
        **options,
    )


def inherit_model_fields(
    experiment: Experiment, heads: Mapping[str, int], checkpoint_metadata: Mapping[str, Any] | None
) -> Experiment:
    """Returns the experiment with the model fields that its pretrained weights, or its own checkpoints, determine.

    Args:
      experiment: its model may leave activation, epsilon, biases and the pre-logits layer open.
      heads: {head: classes}.
      checkpoint_metadata: of the run's newest checkpoint; a resumed run no longer needs its pretrained weights.

    Raises:
      ConfigError: the config asks for another value than that of the weights.
      FileNotFoundError, ValueError: the weights cannot be read, or belong to a model that cannot be converted.
    """
    if checkpoint_metadata is not None:
        return experiment.following(checkpoint_metadata["config"]["model"])
    if experiment.init_from.path is None:
        return experiment
    inherited = convert.model_for(experiment.init_from.path, experiment.model_config(heads), experiment.init_from)
    for name in convert.INHERITED_FIELDS:
        configured = experiment.model.get(name)
        if configured is not None and configured != getattr(inherited, name):
            raise ConfigError(
                f"config.model.{name}={configured!r}, but the weights in {experiment.init_from.path} were trained with "
                f"{getattr(inherited, name)!r}; leave it unset to use theirs"
            )
    return experiment.following(inherited.to_dict())


def init_or_restore(
    experiment: Experiment,
    program: TrainProgram,
    checkpoints: checkpointing.Checkpoints,
    workdir: epath.Path,
    class_names: Mapping[str, Sequence[str]],
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the state that training starts from, and the metadata of the checkpoint it came from (or None).

    Args:
      experiment: the whole config.
      program: of the run.
      checkpoints: of the run.
      workdir: gets `init_report.txt` where the run starts from pretrained weights.
      class_names: {head: names by class id} of the training data.
    """
    # 1. Resume from the newest valid checkpoint of this run.
    restored = checkpoints.restore(program.state)
    if restored is not None:
        state, metadata = restored
        return fill_missing_state(program, state), metadata
    # 2. Else start from pretrained weights, if the config names any.
    if experiment.init_from.path is not None:
        return init_from_weights(experiment, program, workdir, class_names), None
    # 3. Else start from random parameters.
    return program.init_state(experiment.seed), None


def init_from_weights(
    experiment: Experiment,
    program: TrainProgram,
    workdir: epath.Path,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> TrainState:
    """Returns the first state with the pretrained weights of `config.init_from` (section 3.4).

    Logs what became of every array, and writes it to `init_report.txt` in the workdir.

    Args:
      experiment: the whole config.
      program: of the run.
      workdir: of the run.
      class_names: {head: names by class id} of the training data, to match the classes of the pretrained heads.
    """
    options = experiment.init_from
    converted = convert.initialise(
        options.path, program.model.config, options, seed=experiment.seed, class_names=class_names
    )
    logging.info("Initialised from %s", converted.report.summary())
    for entry in converted.report.head_entries():
        logging.info("  %s %s: %s", entry.name, entry.outcome, entry.how)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / INIT_REPORT).write_text(f"{converted.report}\n")
    return program.state_from_params(converted.params)


def fill_missing_state(program: TrainProgram, state: TrainState) -> TrainState:
    """Initialises what a restored checkpoint lacked: the EMA with the restored parameters, the guard with zeros.

    Args:
      program: of the run.
      state: from `Checkpoints.restore`, with None for each missing part.
    """
    missing = [
        name
        for name in checkpointing.OPTIONAL
        if getattr(program.state, name) is not None and getattr(state, name) is None
    ]
    if not missing:
        return state
    logging.warning("The checkpoint has no %s; initialised from its parameters.", " and no ".join(missing))

    def create(params: Any) -> dict[str, Any]:
        fresh = TrainState.create(params, program.optimizer, program.ema_decay)
        return {name: getattr(fresh, name) for name in missing}

    shardings = {name: jax.tree.map(lambda leaf: leaf.sharding, getattr(program.state, name)) for name in missing}
    return state.replace(**jax.jit(create, out_shardings=shardings)(state.params))


def log_start(
    workdir: epath.Path,
    record: Mapping[str, Any],
    params: Any,
    first_step: int,
    total_steps: int,
    restored: Mapping[str, Any] | None,
) -> None:
    """Logs what is about to be trained, writes `config.json`, and says in what a resumed run differs from itself."""
    logging.info("Parameters:\n%s", parameter_overview.get_parameter_overview(params, include_stats=False))
    logging.info("Steps %d to %d on %d devices.", first_step, total_steps, jax.device_count())
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(record["config"], indent=2))
    if restored is None:
        return
    if changed := differences(upgrade(restored["config"], record["config"]), record["config"]):
        logging.warning("The config is not the one that the checkpoint was trained with: %s", "; ".join(changed))
    if restored["data"] != record["data"]:
        logging.warning(
            "The data or their order changed since the checkpoint (%s -> %s): the run goes on, but is not the "
            "uninterrupted one.",
            restored["data"],
            record["data"],
        )
