"""Multi-view evaluation (section 4.1): V views of each video, logits averaged; each video of the split counted once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpointing, metrics, plots, sharding
from vivit_jax.data import build, index, mixture, pipeline
from vivit_jax.experiment import Experiment
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.train_step import make_eval_step

RESULT_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      scalars: `top1`, `top5`, `loss`, `mean_class_accuracy`, or `HEAD/...` for several heads and `action/...`.
      confusion: {head: int [C, C]}, rows the truth.
      counted: videos that count in the scalars.
      unreadable: videos of the split that could not be decoded.
      views: (temporal, spatial).
      repeated_views: videos too short or too small for as many views: two of theirs are the same.
    """

    scalars: dict[str, float]
    confusion: dict[str, np.ndarray]
    counted: int
    unreadable: int
    views: tuple[int, int]
    repeated_views: int = 0

    def summary(self) -> str:
        """One line: what was reached, on how many videos, seen how."""
        shown = ", ".join(f"{n} {v:.1%}" for n, v in self.scalars.items() if n.endswith(("top1", "top5")))
        lost = f", {self.unreadable} unreadable" if self.unreadable else ""
        temporal, spatial = self.views
        same = f", of which {self.repeated_views} videos have fewer" if self.repeated_views else ""
        return f"{shown} ({self.counted} videos, each counted once{lost}; {temporal} x {spatial} views{same})"


class Evaluator:
    """Evaluates parameters on a split, again and again, with one compiled program.

    Args:
      model: whose parameters will be given.
      mesh: the mesh that they live on; `jax.set_mesh(mesh)` must be in force when called.
      experiment: batch size and views.
      split: the records.
      spec: how clips are cut.
    """

    def __init__(self, model: ViViT, mesh: Any, experiment: Experiment, split: Any, spec: Any):
        self._mesh, self._split, self._spec = mesh, split, spec
        self._batch_size = experiment.evaluation.batch_size
        self._views = (experiment.evaluation.temporal_views, experiment.evaluation.spatial_views)
        self._threads, self._prefetch = experiment.data.threads, experiment.data.prefetch
        self._announced = False
        kind = metrics.collection(split.heads)
        eval_step = make_eval_step(model.apply)

        def step(params: Any, batch: Mapping[str, Any], so_far: Any) -> Any:
            update = kind.single_from_model_output(
                logits=eval_step(params, batch),
                labels=batch["label"],
                mask=batch["mask"],
                index=batch["index"],
            )
            return update if so_far is None else so_far.merge(update)

        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any) -> Result:
        """Runs over the whole split.

        Raises:
          RuntimeError: a video was seen twice or not at all (a defect, not a user's error).
        """
        total, seen = None, []
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
            seen.append(batch["index"][batch["index"] >= 0])
            total = self._step(params, sharding.place_batch(batch, self._mesh, self._batch_size), total)
        computed = jax.device_get(total.compute())
        count = computed.pop("count")
        check_seen_once(np.concatenate(seen), int(count["listed"]), self._split.num_videos)
        scalars, confusion = metrics.summarise(computed, self._split.heads)
        counted = int(count["counted"])
        unreadable = int(count["listed"]) - counted
        return Result(scalars, confusion, counted, unreadable, self._views, batches.repeated_views)


def check_seen_once(indices: np.ndarray, listed: int, expected: int) -> None:
    """Raises RuntimeError unless the videos of a split were each seen exactly once.

    Args:
      indices: places in the split that this process saw, padding left out.
      listed: videos seen by all processes together.
      expected: videos in the split.
    """
    if len(np.unique(indices)) != len(indices) or listed != expected:
        raise RuntimeError(
            f"evaluation saw {listed} videos of a split of {expected}, {len(indices) - len(np.unique(indices))} of "
            "them twice here; please report this"
        )


def restore_for_inference(
    checkpoint: epath.PathLike, mesh: Any, *, which: str = "best"
) -> tuple[ViViT, Any, dict[str, Any], epath.Path]:
    """Model and parameters of a checkpoint, from the checkpoint alone.

    Args:
      checkpoint: a workdir, a folder of steps, or one step.
      mesh: to place the parameters on.
      which: 'best' or 'latest', where `checkpoint` is not one step.

    Returns:
      (model, parameters, meta, the step's path).

    Raises:
      CheckpointError: none there, or damaged.
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
        return model, checkpoints.restore_params(abstract, step), meta, root / str(step)


def evaluate(
    experiment: Experiment,
    workdir: epath.PathLike,
    checkpoint: epath.PathLike | None = None,
    *,
    which: str = "best",
) -> Result:
    """Evaluates a checkpoint on the config's evaluation split and writes what it found.

    Args:
      experiment: data, views and batch size; its model must be the checkpoint's.
      workdir: of the run; gets `evaluation.json` and pictures.
      checkpoint: another workdir or one step; default, `workdir`.
      which: 'best' or 'latest'.

    Raises:
      CheckpointError: no checkpoint, a damaged one, or one of another model.
      FileNotFoundError: the data set is not there; the message says what belongs where.
    """
    workdir, data = epath.Path(workdir), experiment.data
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    with jax.set_mesh(mesh):
        stored, params, meta, path = restore_for_inference(checkpoint or workdir, mesh, which=which)
        experiment = experiment.following(stored.config.to_dict())
        split = index.open_split(build.prepare(data.name, data.dir), data.eval_split)
        # A mixture may have added classes to the heads; the checkpoint knows them.
        classes = meta["class_names"] if data.mixture else split.class_names
        split = mixture.evaluation_split(split, classes, data.subset)
        wanted = experiment.model_config(split.heads)
        checkpointing.check_against(abstract_params(wanted), params, str(path))
        # The parameters fit; what does not show in them (frames, dropout, scan) is the config's to say, but for the
        # activation and the like, which a config leaves open: those are the checkpoint's.
        model = ViViT(wanted)
        result = Evaluator(model, mesh, experiment, split, experiment.clip_spec(wanted))(params)
    logging.info("%s: %s", path, result.summary())
    write_result(workdir, result, path, data.eval_split, split.class_names)
    return result


def write_result(
    workdir: epath.PathLike,
    result: Result,
    checkpoint: epath.PathLike,
    split: str,
    class_names: Mapping[str, Sequence[str]],
) -> None:
    """Leaves `evaluation.json` and the confusion matrices, `pictures/confusion_HEAD.png`, in the workdir.

    Only process 0 writes.
    """
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    found = {"checkpoint": str(checkpoint), "split": split, "views": result.views, "videos": result.counted}
    found |= {"unreadable": result.unreadable, "repeated_views": result.repeated_views, "metrics": result.scalars}
    (workdir / RESULT_FILE).write_text(json.dumps(found, indent=2))
    for head, matrix in result.confusion.items():
        figure = plots.confusion_matrix(matrix, class_names[head], f"{head}, {split}")
        plots.save(figure, workdir / "pictures" / f"confusion_{head}.png")
