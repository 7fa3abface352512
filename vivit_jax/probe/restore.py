"""The frozen model of a probe: a checkpoint of a run, or pretrained weights fitted to the config's model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.init_from import REPORT_FILE
from vivit_jax.evaluation.evaluate import restore_for_inference
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.train.setup import inherit_model_fields


def restore(
    experiment: Experiment, checkpoint: epath.PathLike, workdir: epath.PathLike, mesh: Any, *, which: str = "best"
) -> tuple[ViViT, Any, str]:
    """Restores model and parameters; `jax.set_mesh(mesh)` must be active.

    Args:
      experiment: `model` and `init_from` for pretrained weights; a checkpoint of a run states its own model.
      checkpoint: a workdir, a folder of steps or one step; or pretrained weights, as `convert.initialise` reads them.
      workdir: receives `init_report.txt` for pretrained weights (section 3.4).
      mesh: where the parameters are placed.
      which: 'best' or 'latest', where `checkpoint` is a run.

    Returns:
      (model, parameters, path of the checkpoint).

    Raises:
      CheckpointError: a damaged checkpoint of a run.
      FileNotFoundError, ValueError, ConversionError: weights that are missing, cannot be read or do not fit.
    """
    try:
        checkpointing.locate(checkpoint)
    except checkpointing.CheckpointError:
        pass  # not a checkpoint of a run
    else:
        model, params, _, path = restore_for_inference(checkpoint, mesh, which=which)
        return model, params, str(path)
    # Without heads, as the features come before them.
    options = dataclasses.replace(experiment.init_from, path=str(checkpoint), head="reinit")
    experiment = inherit_model_fields(dataclasses.replace(experiment, init_from=options), {}, None)
    config = experiment.model_config({})
    sharding.check_model(mesh, config)
    converted = convert.initialise(options.path, config, options, seed=experiment.seed)
    logging.info("Initialised from %s", converted.report.summary())
    missing = [entry for entry in converted.report.entries if entry.outcome == "initialised"]
    if missing:
        logging.warning(
            "%d arrays of the model are not in the weights (%s: %s%s): the features are partly those of an untrained "
            "model.", len(missing), missing[0].name, missing[0].how, "; and others" if len(missing) > 1 else "",
        )  # fmt: skip
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / REPORT_FILE).write_text(f"{converted.report}\n")
    shardings = sharding.state_sharding(mesh, {"params": abstract_params(converted.config)})["params"]
    return ViViT(converted.config), jax.device_put(converted.params, shardings), str(checkpoint)
