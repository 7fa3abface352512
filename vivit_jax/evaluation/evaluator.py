"""Multi-view evaluation of one split (section 4.1): V views of each video, logits averaged, each video counted once.

Of masked pretraining: the loss of masked tubelets, with the same masks each time.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vivit_jax import distributed, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.pipeline.batches import Batches
from vivit_jax.data.selection import subset
from vivit_jax.data.selection.sampling import select_views
from vivit_jax.evaluation import metrics, predictions
from vivit_jax.evaluation.results import Result
from vivit_jax.models import inference
from vivit_jax.models.masked import reconstruction
from vivit_jax.train_step import as_heads, map_views, normalise
from vivit_jax.utils.trees import path_name

_SHOWN = 4  # clips of the first batch of masked pretraining, as pictures


class EvaluationInterrupted(Exception):
    """The evaluation was asked to stop between two batches."""


class Evaluator:
    """Evaluates parameters on a split, any number of times, with one compiled program.

    The metrics with fewer temporal views, 1 to all, come from the same logits.

    Args:
      model, mesh: of the parameters; `jax.set_mesh(mesh)` must be active in calls.
      experiment: batch size, views and compute dtype.
      split, spec: the records, and how clips are cut from them.
      videos: number of videos to evaluate, at least 1, spread over the split (`spread_indices`); None for all.
    """

    def __init__(
        self, model: Any, mesh: Any, experiment: Experiment, split: Any, spec: Any, *, videos: int | None = None
    ):
        self._split_size, self._indices = split.num_videos, spread_indices(split.num_videos, videos)
        self._split = split if len(self._indices) == split.num_videos else subset.take(split, self._indices)
        self._mesh, self._spec, self._experiment = mesh, spec, experiment
        self._model, options = for_inference(model, experiment), experiment.evaluation
        self._views = (1, 1) if experiment.pretraining else (options.temporal_views, options.spatial_views)
        self._log_pipeline = True
        self._step = inference.jit(self._make_step(), self._model.config, mesh)
        self._merge = jax.jit(self._merge_totals)

    def _make_step(self) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
        """Returns `(params, batch) -> outputs`: `index`, `mask`, others [B, ...], and `totals`, which are merged."""
        model, spec, (temporal, spatial) = self._model, self._spec, self._views
        # The temporal views of each ablation; the last has all of them.
        self._selections = [select_views(temporal, count + 1, spec.sampling) for count in range(temporal)]
        multi_label, loss = sorted(self._split.multi_label), self._experiment.loss.name
        collection = metrics.collection(self._split.heads, multi_label, loss)

        def step(params: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
            views = map_views(
                lambda clips: as_heads(model.apply({"params": params}, clips, train=False)),
                batch["video"],
                inference.clips_at_once(model.config),
            )
            targets = {"labels": batch["label"], "mask": batch["mask"]}
            averages = []  # {head: [B, C]} of each selection of temporal views, each with all its spatial views
            for selection in self._selections:
                indices = np.arange(temporal * spatial).reshape(temporal, spatial)[list(selection)].ravel()
                averages.append({head: jnp.mean(logits[indices], axis=0) for head, logits in views.items()})
            outputs = predictions.of_batch(averages[-1], batch, loss)
            # Average precision ranks all videos, so it needs the scores on the host.
            outputs["scores"] = [{head: logits[head] for head in multi_label} for logits in averages]
            outputs["totals"] = [collection.single_from_model_output(logits=each, **targets) for each in averages]
            return outputs

        return step

    @staticmethod
    def _merge_totals(old: Any, new: Any) -> Any:
        return [a.merge(b) for a, b in zip(old, new, strict=True)]

    def __call__(self, params: Any, interrupted: Callable[[], bool] | None = None) -> Result:
        """Evaluates all the videos; raises EvaluationInterrupted once `interrupted` returns True after a batch."""
        # Run the model; metrics are merged on the device, predictions fetched.
        distributed.beat("evaluation")
        batches = open_batches(self._split, self._spec, self._views, self._experiment, self._mesh)
        if self._log_pipeline:
            num_videos = self._split.num_videos
            logging.info("Evaluating on %s, %d videos: %s", self._split.name, num_videos, batches.description)
            self._log_pipeline = False
        totals, fetched, params = None, [], inference.cast_params(params, self._model.config)
        batch_size = self._experiment.evaluation.batch_size
        for outputs in run_batches(self._step, params, batches, self._mesh, batch_size, interrupted):
            updates = outputs.pop("totals")
            totals = updates if totals is None else self._merge(totals, updates)
            fetched.append(jax.device_get(outputs))

        # Order the outputs by video, and check that each was seen once.
        arrays = predictions.sort_by_index(fetched)
        if not np.array_equal(arrays["index"], np.arange(self._split.num_videos)):
            seen = f"{len(np.unique(arrays['index']))} of the {self._split.num_videos} videos of a split"
            raise RuntimeError(f"evaluation saw {seen}, in {len(arrays['index'])} rows; please report this")
        counted = arrays["mask"] > 0
        return Result(
            **self._summarise(params, totals, arrays, counted),
            counted=int(counted.sum()),
            unreadable=int((~counted).sum()),
            views=self._views,
            repeated_views=batches.repeated_views,
            split_size=self._split_size,
            dtype=self._model.config.dtype,
        )

    def _summarise(self, params: Any, totals: Any, arrays: Any, counted: np.ndarray) -> dict[str, Any]:
        """Returns the fields of `Result` that follow from outputs; `counted`: bool [N], the readable videos."""
        heads = self._split.heads
        table = predictions.Predictions.from_arrays(arrays, self._split.video_id, list(heads))

        # Scalars for each selection of views.
        by_views = {}
        for selection, total, scores in zip(self._selections, totals, arrays["scores"], strict=True):
            scalars, average_precision = metrics.summarise(jax.device_get(total.compute()), heads), {}
            for head, of_videos in scores.items():
                truth = table.heads[head].truth[counted]
                average_precision[head] = metrics.average_precision(truth, of_videos[counted])
                name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
                scalars[name] = metrics.mean_over_present(average_precision[head])
            by_views[selection] = scalars

        # Confusion matrices, with all views.
        scalars, confusion = dict(scalars), {}
        for head in (head for head in heads if head not in self._split.multi_label):
            truth, predicted = table.heads[head].truth[counted], table.heads[head].top[counted, 0]
            confusion[head] = metrics.confusion_matrix(truth, predicted, heads[head])
            name = metrics.scalar_name(head, metrics.MEAN_CLASS_ACCURACY, heads)
            scalars[name] = metrics.mean_over_present(metrics.class_accuracy(confusion[head]))
        if counted.any() and not all(math.isfinite(v) for name, v in scalars.items() if name.endswith("loss")):
            broken = [path_name(path) for path, x in jax.tree.leaves_with_path(params) if not jnp.isfinite(x).all()]
            where = f"{len(broken)} of their arrays hold NaN or infinity ({', '.join(broken[:3])})" if broken else ""
            logging.error("The evaluated parameters are broken: loss on %s is not finite. %s", self._split.name, where)
        return {
            "scalars": scalars,
            "confusion": confusion,
            "predictions": dataclasses.replace(table, index=self._indices[table.index]),
            "by_views": by_views if len(by_views) > 1 else {},
            "average_precision": average_precision,
        }


class MaskedEvaluator(Evaluator):
    """Evaluates masked pretraining on the first clip of each video, its central crop."""

    def _make_step(self) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
        model = self._model
        patches = model.config.grid[1] * model.config.grid[2]

        def step(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            def noise(index: jax.Array) -> jax.Array:  # of a video, in any batch
                return jax.random.uniform(jax.random.fold_in(jax.random.key(0), index), (patches,))

            out = model.apply({"params": params}, normalise(batch["video"][:, 0]), jax.vmap(noise)(batch["index"]))
            shown = reconstruction(jax.tree.map(lambda x: x[:_SHOWN], out), model.config)
            return {"loss": out["loss"], "mask": batch["mask"], "index": batch["index"], "totals": shown}

        return step

    @staticmethod
    def _merge_totals(old: Any, new: Any) -> Any:
        return old  # pictures of the first batch

    def _summarise(self, params: Any, totals: Any, arrays: Any, counted: np.ndarray) -> dict[str, Any]:
        loss = float(arrays["loss"][counted].mean()) if counted.any() else math.nan
        pictures = jax.device_get(totals)[: self._split.num_videos]
        return {"scalars": {"loss": loss}, "confusion": {}, "reconstructions": pictures}


def for_inference(model: Any, experiment: Experiment) -> Any:
    """Returns the model with the compute dtype of `config.evaluation.dtype`."""
    return model.clone(config=inference.inference_config(model.config, experiment.evaluation.dtype))


def open_batches(split: Any, spec: Any, views: tuple[int, int], experiment: Experiment, mesh: Any) -> Batches:
    """Opens the evaluation batches of this process; `views` is (temporal, spatial)."""
    size = experiment.evaluation.batch_size
    options = dataclasses.replace(experiment.data, cache=False)  # the cache is for training sets
    return pipeline.eval_batches(split, spec, size, *views, sharding.process_rows(mesh, size), options)


def run_batches(
    step: Callable[..., Any],
    params: Any,
    batches: Batches,
    mesh: Any,
    size: int,
    interrupted: Callable[[], bool] | None = None,
) -> Iterator[Any]:
    """Yields `step(params, batch)` of each batch, after dispatching the next, so that the device need not wait.

    `size` is that of the global batch. EvaluationInterrupted once `interrupted` returns True after a batch.
    """
    dispatched = (step(params, sharding.place_batch(batch, mesh, size)) for batch in batches)
    for outputs, _ in itertools.pairwise(itertools.chain(dispatched, [None])):
        yield outputs
        distributed.beat("evaluation")
        if interrupted is not None and interrupted():
            batches.close()
            raise EvaluationInterrupted


def spread_indices(total: int, number: int | None) -> np.ndarray:
    """Selects videos that represent a split: one from each of `number` equal stretches, the same in every run.

    Returns rising indices in [0, total), all of them if `number` is None or larger. The offset within the stretch
    follows the golden ratio (a low-discrepancy sequence): where classes alternate, the first of each has the same.
    """
    if number is None or number >= total:
        return np.arange(total)
    stretch = np.arange(number)
    low, high = stretch * total // number, (stretch + 1) * total // number
    offset = (stretch + 1) * (math.sqrt(5) - 1) / 2 % 1
    return low + (offset * (high - low)).astype(np.int64)
