"""Multi-view evaluation (section 4.1): V views of each video, logits averaged; each video of the split counted once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpointing, metrics, sharding
from vivit_jax import examples as per_video
from vivit_jax.data import build, index, mixture, pipeline
from vivit_jax.data import subset as subsets
from vivit_jax.experiment import Experiment
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.results import RESULT_FILE, FewerViews, Result, write_result
from vivit_jax.train_step import make_eval_step

__all__ = ["RESULT_FILE", "Evaluator", "FewerViews", "Result", "evaluate", "restore_for_inference", "write_result"]


class Evaluator:
    """Evaluates parameters on a split, again and again, with one compiled program.

    Args:
      model: whose parameters will be given.
      mesh: the mesh that they live on; `jax.set_mesh(mesh)` must be in force when called.
      experiment: batch size and views.
      split: the records.
      spec: how clips are cut.
      videos: how many videos to evaluate, spread over the split (`spread_over`); None for all.
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
        self._places = spread_over(split.num_videos, videos)
        self._whole = split
        self._split = split if len(self._places) == split.num_videos else subsets.take(split, self._places)
        self._mesh, self._spec = mesh, spec
        self._batch_size = experiment.evaluation.batch_size
        self._views = (experiment.evaluation.temporal_views, experiment.evaluation.spatial_views)
        self._threads, self._prefetch = experiment.data.threads, experiment.data.prefetch
        self._announced = False
        self._multi_label, loss = split.multi_label, experiment.loss.kind
        temporal = self._views[0]
        counts = range(1, temporal + 1) if by_views else (temporal,)
        self._which = [views_among(temporal, count, spec.sampling) for count in counts]
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
            threads=self._threads,
            prefetch=self._prefetch,
        )
        if not self._announced:
            logging.info("Evaluating on %s, %d videos: %s", self._split.name, self._split.num_videos, batches.plan)
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
        found = per_video.Examples.join([part["videos"] for part in fetched], self._split.video_id, list(heads))
        check_seen_once(found.index, int(count["listed"]), self._split.num_videos)
        precision = [self._average_precision(fetched, found, number) for number in range(len(computed))]
        summaries = [metrics.summarise(values, heads) for values in computed]
        for (scalars, _), of_heads in zip(summaries, precision, strict=True):
            for head, of_classes in of_heads.items():
                name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
                scalars[name] = metrics.mean_over_present(of_classes)
        scalars, confusion = summaries[-1]
        by_views = tuple(
            FewerViews(which, {name: value for name, value in values.items() if "mean_class_accuracy" not in name})
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
            of=self._whole.num_videos,
            examples=dataclasses.replace(found, index=self._places[found.index]),
            by_views=by_views if len(by_views) > 1 else (),
            average_precision=precision[-1],
        )

    def _average_precision(self, fetched: Any, found: per_video.Examples, number: int) -> dict[str, np.ndarray]:
        """{head with several labels: average precision of each class}, with the views of `self._which[number]`."""
        order = np.argsort(np.concatenate([part["videos"]["index"] for part in fetched]), kind="stable")
        order = order[-len(found.index) :]  # padding, whose index is -1, comes first
        result = {}
        for head in sorted(self._multi_label):
            scores = np.concatenate([part["scores"][number][head] for part in fetched])[order]
            result[head] = metrics.average_precision(found.heads[head].truth[found.counted], scores[found.counted])
        return result


def spread_over(total: int, wanted: int | None) -> np.ndarray:
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


def views_among(total: int, wanted: int, sampling: str = "random_start") -> tuple[int, ...]:
    """Which of `total` temporal views stand for `wanted`: those nearest to what an evaluation with so many would take.

    With clips of consecutive frames, number i of n is view (total - 1) * i // (n - 1), spread as the clips are over a
    video, from the first to the last; one alone is the first. With frames from segments, (2 i + 1) * total // (2 n),
    the middle one of n equal parts. (The same formulae as `data.sampling.view_frames` and `segment_view_frames`.)

    Args:
      total: temporal views that there are.
      wanted: how many of them, 1 to `total`.
      sampling: of the `ClipSpec`.
    """
    if sampling == "segments":
        return tuple((2 * i + 1) * total // (2 * wanted) for i in range(wanted))
    return tuple((total - 1) * i // max(wanted - 1, 1) for i in range(wanted))


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
        experiment = Experiment.from_config(checkpoints.meta(newest)["config"])
        checkpoints.best_metric = experiment.checkpoint.best_metric
        if step is None:
            step = checkpoints.best() if which == "best" else newest
        meta = checkpoints.meta(step)
        model = ViViT(experiment.model_config(meta["heads"]))
        abstract = abstract_params(model.config)
        abstract = checkpointing.abstract_like(abstract, sharding.state_sharding(mesh, {"params": abstract})["params"])
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
        split = index.open_split(build.prepare(data.name, data.dir), data.eval_split)
        # A mixture may have added classes to the heads; the checkpoint knows them.
        classes = meta["class_names"] if data.mixture else split.class_names
        split = mixture.evaluation_split(split, classes, data.subset)
        wanted = experiment.model_config(split.heads)
        sharding.check_model(mesh, wanted)
        checkpointing.check_against(abstract_params(wanted), params, str(path))
        # The parameters fit; what does not show in them (frames, dropout, scan) is the config's to say, but for the
        # activation and the like, which a config leaves open: those are the checkpoint's.
        model = ViViT(wanted)
        result = Evaluator(model, mesh, experiment, split, experiment.clip_spec(wanted))(params)
    logging.info("%s: %s", path, result.summary())
    write_result(workdir, result, path, data.eval_split, split.class_names, experiment.to_dict()["data"])
    return result
