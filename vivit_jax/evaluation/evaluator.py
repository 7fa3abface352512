"""Multi-view evaluation of one split (section 4.1): V views of each video, logits averaged, each video counted once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.selection import subset as subsets
from vivit_jax.data.selection.sampling import select_views
from vivit_jax.evaluation import metrics
from vivit_jax.evaluation import predictions as per_video
from vivit_jax.evaluation.results import Result, ViewAblation
from vivit_jax.models import ViViT
from vivit_jax.train_step import make_eval_step


class Evaluator:
    """Evaluates parameters on a split, again and again, with one compiled program.

    Args:
      model: whose parameters will be given.
      mesh: the mesh that they live on; `jax.set_mesh(mesh)` must be in force when called.
      experiment: batch size and views.
      split: the records.
      spec: how clips are cut.
      videos: how many videos to evaluate, spread over the split (`spread_indices`); None for all.
      by_views: also find the accuracy for 1 to all temporal views, from the same logits.

    Raises:
      ValueError: `videos` below 1.
    """

    def __init__(
        self,
        model: ViViT,
        mesh: Any,
        experiment: Experiment,
        split: Any,
        spec: Any,
        *,
        videos: int | None = None,
        by_views: bool = True,
    ):
        if videos is not None and videos < 1:
            raise ValueError(f"videos={videos} must be at least 1, or None for all {split.num_videos} of {split.name}")
        self._places = spread_indices(split.num_videos, videos)
        self._whole = split
        self._split = split if len(self._places) == split.num_videos else subsets.take(split, self._places)
        self._mesh, self._spec = mesh, spec
        self._batch_size = experiment.evaluation.batch_size
        self._views = (experiment.evaluation.temporal_views, experiment.evaluation.spatial_views)
        # The cache is for the training splits.
        self._pipeline_options = dataclasses.replace(experiment.data, cache=False)
        self._announced = False
        self._multi_label, loss = split.multi_label, experiment.loss.name
        temporal = self._views[0]
        counts = range(1, temporal + 1) if by_views else (temporal,)
        self._which = [select_views(temporal, count, spec.sampling) for count in counts]
        collections = [
            metrics.collection(split.heads, self._multi_label, loss=loss, confusion=which is self._which[-1])
            for which in self._which
        ]
        eval_step = make_eval_step(model.apply)

        def step(params: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
            # One view at a time, so that memory does not grow with their number.
            views = jax.lax.map(
                lambda video: eval_step(params, {"video": video[:, None]}), jnp.moveaxis(batch["video"], 1, 0)
            )
            given = {"labels": batch["label"], "mask": batch["mask"], "index": batch["index"]}
            averaged = [average_views(views, which, self._views) for which in self._which]
            found = per_video.of_batch(averaged[-1], multi_label=self._multi_label, loss=loss, **given)
            scores = [{head: logits[head] for head in self._multi_label} for logits in averaged]
            updates = [
                kind.single_from_model_output(logits=logits, **given)
                for kind, logits in zip(collections, averaged, strict=True)
            ]
            return {"updates": updates, "videos": found, "scores": scores}

        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))
        self._merge = jax.jit(lambda old, new: [a.merge(b) for a, b in zip(old, new, strict=True)])

    def __call__(self, params: Any) -> Result:
        """Runs over all the videos.

        Raises:
          RuntimeError: a video was seen twice or not at all (a defect, not a user's error).
        """
        total, fetched, waiting = None, [], None
        batches = pipeline.eval_batches(
            self._split,
            self._spec,
            batch_size=self._batch_size,
            temporal_views=self._views[0],
            spatial_views=self._views[1],
            rows=sharding.process_rows(self._mesh, self._batch_size),
            options=self._pipeline_options,
        )
        if not self._announced:
            logging.info(
                "Evaluating on %s, %d videos: %s", self._split.name, self._split.num_videos, batches.description
            )
            self._announced = True
        for batch in batches:
            made = self._step(params, sharding.place_batch(batch, self._mesh, self._batch_size))
            updates = made.pop("updates")
            total = updates if total is None else self._merge(total, updates)
            # Fetched while the next batch is under way, so that the device does not wait for the host.
            fetched += [jax.device_get(waiting)] * (waiting is not None)
            waiting = made
        fetched.append(jax.device_get(waiting))
        computed = [jax.device_get(update.compute()) for update in total]
        count = [values.pop("count") for values in computed][-1]
        heads = self._split.heads
        found = per_video.Predictions.join([part["videos"] for part in fetched], self._split.video_id, list(heads))
        check_seen_once(found.index, int(count["listed"]), self._split.num_videos)
        precision = [self._average_precision(fetched, found, number) for number in range(len(computed))]
        summaries = [metrics.summarise(values, heads) for values in computed]
        for (scalars, _), of_heads in zip(summaries, precision, strict=True):
            for head, of_classes in of_heads.items():
                name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
                scalars[name] = metrics.mean_over_present(of_classes)
        scalars, confusion = summaries[-1]
        by_views = tuple(
            ViewAblation(which, {name: value for name, value in values.items() if "mean_class_accuracy" not in name})
            for which, (values, _) in zip(self._which, summaries, strict=True)
        )
        counted = int(count["counted"])
        return Result(
            scalars,
            confusion,
            counted,
            int(count["listed"]) - counted,
            self._views,
            batches.repeated_views,
            split_size=self._whole.num_videos,
            predictions=dataclasses.replace(found, index=self._places[found.index]),
            by_views=by_views if len(by_views) > 1 else (),
            average_precision=precision[-1],
        )

    def _average_precision(self, fetched: Any, found: per_video.Predictions, number: int) -> dict[str, np.ndarray]:
        """{head with several labels: average precision of each class}, with the views of `self._which[number]`."""
        order = np.argsort(np.concatenate([part["videos"]["index"] for part in fetched]), kind="stable")
        order = order[-len(found.index) :]  # padding, whose index is -1, comes first
        result = {}
        for head in sorted(self._multi_label):
            scores = np.concatenate([part["scores"][number][head] for part in fetched])[order]
            result[head] = metrics.average_precision(found.heads[head].truth[found.counted], scores[found.counted])
        return result


def spread_indices(total: int, wanted: int | None) -> np.ndarray:
    """Which videos of a split stand for all of it: one of each of `wanted` equal stretches, the same in every run.

    Where in its stretch a video lies follows the golden ratio (a low-discrepancy sequence): the first of each would
    be all of one class in a split whose classes take turns.

    Args:
      total: videos of the split.
      wanted: how many; None, or more than there are: all.

    Returns:
      int64 [min(wanted, total)], rising places in [0, total).
    """
    if wanted is None or wanted >= total:
        return np.arange(total)
    number = np.arange(wanted)
    low, high = number * total // wanted, (number + 1) * total // wanted
    share = (number + 1) * (math.sqrt(5) - 1) / 2 % 1
    return low + (share * (high - low)).astype(np.int64)


def average_views(views: Mapping[str, jax.Array], which: Sequence[int], shape: tuple[int, int]) -> dict[str, jax.Array]:
    """The mean of some views' logits.

    Args:
      views: {head: [V, B, C]}, V = temporal * spatial, temporal-major.
      which: temporal views to take, each with all its spatial ones.
      shape: (temporal, spatial).

    Returns:
      {head: [B, C]}.
    """
    places = np.arange(shape[0] * shape[1]).reshape(shape)[list(which)].ravel()
    return {head: jnp.mean(logits[places], axis=0) for head, logits in views.items()}


def check_seen_once(indices: np.ndarray, listed: int, expected: int) -> None:
    """Raises RuntimeError unless the videos of a split were each seen exactly once.

    Args:
      indices: places in the split that were seen, padding left out.
      listed: videos seen by all processes together.
      expected: videos in the split.
    """
    if len(np.unique(indices)) != len(indices) or listed != expected:
        raise RuntimeError(
            f"evaluation saw {listed} videos of a split of {expected}, {len(indices) - len(np.unique(indices))} of "
            "them twice; please report this"
        )
