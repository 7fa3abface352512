"""Multi-view evaluation (section 4.1): V views of each video, logits averaged; each video of the split counted once."""

from __future__ import annotations

from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data.open import open_eval_set
from vivit_jax.evaluation.evaluator import Evaluator
from vivit_jax.evaluation.results import RESULT_FILE, Result, ViewAblation, write_result
from vivit_jax.models import ViViT, abstract_params

__all__ = ["RESULT_FILE", "Evaluator", "Result", "ViewAblation", "evaluate", "restore_for_inference", "write_result"]


def restore_for_inference(
    checkpoint: epath.PathLike, mesh: Any, *, which: str = "best", weights: str = "params"
) -> tuple[ViViT, Any, dict[str, Any], epath.Path]:
    """Model and parameters of a checkpoint, from the checkpoint alone.

    Args:
      checkpoint: a workdir, a folder of steps, or one step.
      mesh: to place the parameters on.
      which: 'best' or 'latest', where `checkpoint` is not one step.
      weights: 'params', or 'ema' for their average over the steps.

    Returns:
      (model, parameters, meta, the step's path).

    Raises:
      CheckpointError: none there, damaged, or without an average.
    """
    root, step = checkpointing.locate(checkpoint)
    with checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        newest = step if step is not None else checkpoints.latest()
        experiment = Experiment.from_config(checkpoints.metadata(newest)["config"])
        checkpoints.best_metric = experiment.checkpoint.best_metric
        if step is None:
            step = checkpoints.best() if which == "best" else newest
        meta = checkpoints.metadata(step)
        model = ViViT(experiment.model_config(meta["heads"]))
        abstract = abstract_params(model.config)
        abstract = sharding.abstract_like(abstract, sharding.state_sharding(mesh, {"params": abstract})["params"])
        return model, checkpoints.restore_params(abstract, step, weights), meta, root / str(step)


def evaluate(
    experiment: Experiment,
    workdir: epath.PathLike,
    checkpoint: epath.PathLike | None = None,
    *,
    which: str = "best",
    weights: str = "params",
) -> Result:
    """Evaluates a checkpoint on the config's evaluation split and writes what it found.

    Args:
      experiment: data, views and batch size; its model must be the checkpoint's.
      workdir: of the run; gets `evaluation.json` and pictures.
      checkpoint: another workdir or one step; default, `workdir`.
      which: 'best' or 'latest'.
      weights: 'params', or 'ema' for their average over the steps.

    Raises:
      CheckpointError: no checkpoint, a damaged one, one of another model, or one without an average.
      FileNotFoundError: the data set is not there; the message says what belongs where.
    """
    workdir, data = epath.Path(workdir), experiment.data
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    with jax.set_mesh(mesh):
        stored, params, meta, path = restore_for_inference(checkpoint or workdir, mesh, which=which, weights=weights)
        experiment = experiment.following(stored.config.to_dict())
        # A mixture may have added classes to the heads; the checkpoint knows them.
        split = open_eval_set(data, meta["class_names"] if data.mixture else None)
        wanted = experiment.model_config(split.heads)
        sharding.check_model(mesh, wanted)
        checkpointing.check_params(abstract_params(wanted), params, str(path))
        # The parameters fit; what does not show in them (frames, dropout, scan) is the config's to say, but for the
        # activation and the like, which a config leaves open: those are the checkpoint's.
        model = ViViT(wanted)
        result = Evaluator(model, mesh, experiment, split, experiment.clip_spec(wanted))(params)
    logging.info("%s: %s", path, result.summary())
    write_result(workdir, result, path, data.eval_split, split.class_names, experiment.to_dict()["data"])
    return result
