"""Evaluation of a checkpoint (section 4.1): V views of each video, logits averaged."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data.open import open_eval_set
from vivit_jax.evaluation.evaluator import Evaluator, MaskedEvaluator
from vivit_jax.evaluation.results import Result, write_result
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.utils import devices
from vivit_jax.utils.class_names import are_placeholders, placeholders


def restore_for_inference(
    checkpoint: epath.PathLike, mesh: Any, *, which: str = "best", weights: str = "params", encoder: bool = False
) -> tuple[Any, Any, dict[str, Any], epath.Path]:
    """Restores (model, parameters, metadata, path of the step) from a checkpoint, which alone is enough.

    The metadata are what the run saved: `config` (a dict), `heads` {head: classes}, `step`, `metrics` and others; all
    heads have `class_names` (`named_classes`). The parameters are placed on `mesh`. The model's `attention_backend` is
    `auto`: the one that it was trained with may need other devices.

    Args:
      checkpoint: a workdir, a folder of steps, or one step; CheckpointError where it is absent or damaged.
      which: 'best' or 'latest' step, where `checkpoint` is not one step.
      weights: 'params', or 'ema' for the averaged parameters; CheckpointError where it has none.
      encoder: of masked pretraining, restore the ViViT without a head instead of the `MaskedViViT`.
    """
    if mesh.devices.flat[0].platform == "cpu":
        devices.keep_freed_memory()
    root, step = checkpointing.locate(checkpoint)
    with checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        newest = step if step is not None else checkpoints.latest()
        experiment = Experiment.from_config(checkpoints.metadata(newest)["config"])
        checkpoints.best_metric = experiment.checkpoint.best_metric
        if step is None:
            step = checkpoints.best() if which == "best" else newest
        metadata = checkpoints.metadata(step)
        metadata["class_names"] = named_classes(metadata, root / str(step))
        config = dataclasses.replace(experiment.model_config(metadata["heads"]), attention_backend="auto")
        model = experiment.module(config)
        abstract = abstract_params(model.config, model)
        abstract = sharding.abstract_like(abstract, sharding.state_sharding(mesh, {"params": abstract})["params"])
        params = checkpoints.restore_params(abstract, step, weights)
        if encoder and params.pop("decoder", None):
            model = ViViT(config)
        return model, params, metadata, root / str(step)


def named_classes(metadata: Mapping[str, Any], where: epath.PathLike) -> dict[str, list[str]]:
    """Returns {head: names by class id} of a checkpoint, LABEL_0 and so on where it has none."""
    names = {head: (metadata.get("class_names") or {}).get(head) for head in metadata["heads"]}
    for head, classes in metadata["heads"].items():
        if names[head] and len(names[head]) != classes:
            problem = f"head {head!r} has {classes} classes and {len(names[head])} class names"
            raise checkpointing.CheckpointError(f"{where}: {problem}; use another step")
        names[head] = names[head] or placeholders(classes)
        if are_placeholders(names[head]):
            logging.warning("%s does not name its %d classes of %r; they are numbered.", where, classes, head)
    return names


def reorder_heads(params: Mapping[str, Any], orders: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns parameters with the classes of their heads in another order, {head: old class id of each class}."""
    params = dict(params)
    for head, order in orders.items():
        leaf = "head" if head == "label" and "head" in params else f"head_{head}"
        if (order != np.arange(len(order))).any():
            for part, values in params[leaf].items():
                reorder = jax.jit(lambda x, order=order: x[..., order], out_shardings=values.sharding)
                params[leaf] = {**params[leaf], part: reorder(values)}
    return params


def evaluate(
    experiment: Experiment,
    workdir: epath.PathLike,
    checkpoint: epath.PathLike | None = None,
    *,
    which: str = "best",
    weights: str = "params",
) -> Result:
    """Evaluates a checkpoint on the evaluation split of the config and writes the result.

    `experiment` has data, views and batch size; its model must be that of the checkpoint. `workdir`, that of the run,
    gets `evaluation.json`, `predictions.csv` and pictures. `checkpoint` is another workdir or one step (None:
    `workdir`); `which` and `weights` as in `restore_for_inference`.

    Raises CheckpointError as `restore_for_inference`, and for a checkpoint of another model or without a classifier;
    ClassNamesError where its classes are not those of the data; FileNotFoundError, which says what belongs where.
    """
    data, mesh = experiment.data, sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    with jax.set_mesh(mesh):
        model, params, metadata, path = restore_for_inference(checkpoint or workdir, mesh, which=which, weights=weights)
        if not (metadata["heads"] or experiment.pretraining):
            raise checkpointing.CheckpointError(f"{path} holds a model without a classifier, which has no labels")
        # Fields that do not show in the parameters (frames, dropout, scan) are the config's; those that a config may
        # leave open (activation, ...) are inherited from the checkpoint.
        experiment = experiment.following(model.config.to_dict())
        # Classes are matched by name: those of the data in their order, then those that only the model has.
        with distributed.process_0_first():
            split, orders = open_eval_set(data, metadata["class_names"])
        config = experiment.model_config(split.heads)
        sharding.check_model(mesh, config)
        devices.warn_of_large_model(config.name, config.hidden_size)
        model = experiment.module(config)
        checkpointing.check_params(abstract_params(config, model), params, str(path))
        params = reorder_heads(params, orders)
        kind = MaskedEvaluator if experiment.pretraining else Evaluator
        result = kind(model, mesh, experiment, split, experiment.clip_spec(config))(params)
    logging.info("%s: %s", path, result.summary())
    write_result(workdir, result, path, data.eval_split, split.class_names, experiment.to_dict()["data"], weights)
    return result
