"""The frozen model that is probed: of a run of ours, or the weights of others fitted to the config's model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.evaluation import evaluate
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.train import initialize
from vivit_jax.train.setup import inherit_model_fields


def restore(
    experiment: Experiment, checkpoint: epath.PathLike, workdir: epath.PathLike, mesh: Any, *, which: str = "best"
) -> tuple[ViViT, Any, str]:
    """Model and parameters; `jax.set_mesh(mesh)` must be in force.

    Args:
      experiment: `init_from` says how weights of others are fitted, and `model` to what; a checkpoint of a run of ours
        is of the model that it says itself.
      checkpoint: a workdir, a folder of steps or one step of ours; or weights in any form that
        `convert.initialise` reads.
      workdir: gets `init_report.txt` where weights of others were fitted (section 3.4).
      mesh: to place the parameters on.
      which: 'best' or 'latest', where `checkpoint` is a run.

    Returns:
      (model, parameters, where they came from).

    Raises:
      CheckpointError: a damaged checkpoint of ours.
      FileNotFoundError, ValueError, ConversionError: weights that are not there, cannot be read or do not fit.
    """
    if _is_ours(checkpoint):
        model, params, _, path = evaluate.restore_for_inference(checkpoint, mesh, which=which)
        return model, params, str(path)
    # Without heads: features come before them.
    options = dataclasses.replace(experiment.init_from, path=str(checkpoint), head="reinit")
    experiment = inherit_model_fields(dataclasses.replace(experiment, init_from=options), {}, None)
    config = experiment.model_config({})
    sharding.check_model(mesh, config)
    made = convert.initialise(options.path, config, options, seed=experiment.seed)
    logging.info("Initialised from %s", made.report.summary())
    fresh = [entry for entry in made.report.entries if entry.outcome == "initialised"]
    if fresh:
        logging.warning(
            "%d of the model's arrays are not in the weights (%s: %s%s): the features are in part those of an "
            "untrained model.",
            len(fresh),
            fresh[0].name,
            fresh[0].how,
            "; and others" if len(fresh) > 1 else "",
        )
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / initialize.INIT_REPORT).write_text(f"{made.report}\n")
    shardings = sharding.state_sharding(mesh, {"params": abstract_params(made.config)})["params"]
    return ViViT(made.config), jax.device_put(made.params, shardings), str(checkpoint)


def _is_ours(checkpoint: epath.PathLike) -> bool:
    try:
        checkpointing.locate(checkpoint)
    except checkpointing.CheckpointError:
        return False
    return True
