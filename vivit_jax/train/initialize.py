"""What comes before the first step: the data, the first or the restored state, what is told of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import parameter_overview
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences
from vivit_jax.models import ViViT
from vivit_jax.train_step import TrainState

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


def state_maker(
    model: ViViT, optimizer: Any, seed: int, mesh: Any, ema_decay: float = 0.0
) -> tuple[TrainState, Callable[[], TrainState]]:
    """The abstract state with its shardings, and the function that makes the first one where it belongs.

    Args:
      model, optimizer: of the run.
      seed: of the parameters.
      mesh: to place the state on.
      ema_decay: of the average of the parameters; 0: there is none.

    Returns:
      (a TrainState of ShapeDtypeStructs, `() -> TrainState`). The values do not depend on the mesh.
    """

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, *model.config.video_shape)))["params"]
        return TrainState.create(params, optimizer, ema_decay)

    key = jax.random.key(seed)
    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_sharding(mesh, abstract)
    return checkpointing.abstract_like(abstract, shardings), lambda: jax.jit(init, out_shardings=shardings)(key)


def follow_weights(experiment: Experiment, heads: Mapping[str, int], recorded: Mapping[str, Any] | None) -> Experiment:
    """The experiment with what the weights it starts from, or its own checkpoints, decide about the model.

    Args:
      experiment: its model may leave activation, epsilon, biases and the pre-logits layer open.
      heads: {head: classes}.
      recorded: the JSON item of the run's newest checkpoint; a run that goes on needs its first weights no more.

    Raises:
      ConfigError: the config asks for another value than that of the weights.
      FileNotFoundError, ValueError: the weights cannot be read, or are of no model that can be converted.
    """
    if recorded is not None:
        return experiment.following(recorded["config"]["model"])
    if experiment.init_from.path is None:
        return experiment
    wanted = experiment.model_config(heads)
    found = convert.model_for(experiment.init_from.path, wanted, experiment.init_from)
    for name in convert.INHERITED_FIELDS:
        asked = experiment.model.get(name)
        if asked is not None and asked != getattr(found, name):
            raise ConfigError(
                f"config.model.{name}={asked!r}, but the weights in {experiment.init_from.path} were trained with "
                f"{getattr(found, name)!r}; leave it unset to follow them"
            )
    return experiment.following(found.to_dict())


def state_from_weights(
    experiment: Experiment,
    model: ViViT,
    optimizer: Any,
    abstract: TrainState,
    workdir: epath.Path,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[], TrainState]:
    """The function that makes the first state from the weights of `config.init_from` (section 3.4).

    What became of every leaf goes to the log and to `init_report.txt` in the workdir.

    Args:
      experiment, model, optimizer: of the run.
      abstract: of `state_maker`.
      workdir: of the run.
      class_names: {head: names by class id} of the run's data, against which those of the weights are held.
    """

    def init() -> TrainState:
        options = experiment.init_from
        made = convert.initialise(options.path, model.config, options, seed=experiment.seed, class_names=class_names)
        logging.info("Initialised from %s", made.report.summary())
        for entry in made.report.of_heads():
            logging.info("  %s %s: %s", entry.name, entry.outcome, entry.how)
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / INIT_REPORT).write_text(f"{made.report}\n")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        params = jax.device_put(made.params, shardings.params)
        make = jax.jit(
            lambda p: TrainState.create(p, optimizer, experiment.optimizer.ema_decay), out_shardings=shardings
        )
        return make(params)

    return init


def begin(
    experiment: Experiment,
    model: ViViT,
    optimizer: Any,
    mesh: Any,
    checkpoints: checkpointing.Checkpoints,
    workdir: epath.Path,
    class_names: Mapping[str, Sequence[str]],
) -> tuple[TrainState, TrainState, dict[str, Any] | None]:
    """The state that a run begins or goes on with.

    Args:
      experiment, model, optimizer, mesh: of the run.
      checkpoints: the newest sound one is taken, where there is any.
      workdir: gets `init_report.txt`, where the run starts from weights.
      class_names: {head: names by class id} of its data.

    Returns:
      (the state, its abstract form with shardings, the JSON item of the checkpoint or None).
    """
    decay = experiment.optimizer.ema_decay
    abstract, init = state_maker(model, optimizer, experiment.seed, mesh, decay)
    restored = checkpoints.restore(abstract)
    if restored is not None:
        state, meta = restored
        return completed(state, abstract, optimizer, decay), abstract, meta
    if experiment.init_from.path is not None:
        init = state_from_weights(experiment, model, optimizer, abstract, workdir, class_names)
    return init(), abstract, None


def completed(state: TrainState, abstract: TrainState, optimizer: Any, ema_decay: float) -> TrainState:
    """A restored state with what its checkpoint lacked: an average that begins with these parameters, a new guard.

    Args:
      state: of `Checkpoints.restore`, None where something is lacking.
      abstract: of `state_maker`.
      optimizer, ema_decay: of the run.
    """
    lacking = [
        name for name in checkpointing.OPTIONAL if getattr(abstract, name) is not None and getattr(state, name) is None
    ]
    if not lacking:
        return state
    logging.warning("The checkpoint has no %s; begun anew from its parameters.", " and no ".join(lacking))

    def make(params: Any) -> dict[str, Any]:
        fresh = TrainState.create(params, optimizer, ema_decay)
        return {name: getattr(fresh, name) for name in lacking}

    shardings = {name: jax.tree.map(lambda leaf: leaf.sharding, getattr(abstract, name)) for name in lacking}
    return state.replace(**jax.jit(make, out_shardings=shardings)(state.params))


def announce(
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
    if changed := differences(restored["config"], record["config"]):
        logging.warning("The config is not the one that the checkpoint was trained with: %s", "; ".join(changed))
    if restored["data"] != record["data"]:
        logging.warning(
            "The data or their order changed since the checkpoint (%s -> %s): the run goes on, but is not the "
            "uninterrupted one.",
            restored["data"],
            record["data"],
        )
