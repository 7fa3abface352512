"""Evaluation during training: parameters and EMA, on part of the videos or all; early stopping."""

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import finetuning
from vivit_jax.config.sections import EMA
from vivit_jax.evaluation.evaluator import EvaluationInterrupted
from vivit_jax.evaluation.results import Result, write_result
from vivit_jax.train import compiled_step
from vivit_jax.train.setup import TrainSetup
from vivit_jax.utils import logs, plots, storage


class EarlyStop:
    """Counts the evaluations since the best one; saved in each checkpoint, so that the count survives a restart.

    `metric` is `checkpoint.best_metric`; `patience`: evaluations in a row without improvement after which the run ends,
    0 for never; `record`: from the restored checkpoint, ignored if it is of another metric.
    """

    def __init__(self, metric: str, patience: int, record: Mapping[str, Any] | None = None):
        self._metric, self._patience = metric, patience
        record = record if record and record["metric"] == metric else {}
        self._best, self._step, self._since = (record.get(name) for name in ("best", "step", "since"))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Counts one more evaluation. NaN is no improvement."""
        value = checkpointing.score(metrics, self._metric)
        best = checkpointing.score({self._metric: self._best} if self._best is not None else None, self._metric)
        if value > best:
            self._best, self._step, self._since = metrics[self._metric], step, 0
        else:
            self._since = (self._since or 0) + 1

    @property
    def over(self) -> bool:
        """Whether the run should end."""
        return 0 < self._patience <= (self._since or 0)

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint stores, JSON-safe."""
        return {"metric": self._metric, "best": self._best, "step": self._step, "since": self._since}

    def __str__(self) -> str:
        best = f"{self._metric} {self._best:.4f} at step {self._step}" if self._best is not None else "none"
        return f"{self._since} evaluations in a row brought no improvement (best: {best})"


class PeriodicEvaluation:
    """Evaluates a run's state at intervals, logs the metrics and decides on early stopping.

    The workdir gets `evaluation.json` and pictures of the run's last evaluation. `writer` is a MetricWriter of clu,
    `progress` a ReportProgress; `restored` is the metadata of the checkpoint that the run continues, if any.

    Attributes:
      metrics: of the newest evaluation, always on the same videos, so that steps compare; EMA's begin with `ema/`.
      early_stop: whether the run should end early.
      full_metrics: of the run's last evaluation, on all videos; empty before it.
    """

    def __init__(self, setup: TrainSetup, workdir: epath.PathLike, writer: Any, progress: Any, restored: Any = None):
        self._experiment, self._split, self._setup = setup.experiment, setup.eval_set, setup
        self._workdir, self._writer, self._progress = epath.Path(workdir), writer, progress
        self._restored = dict(restored or {})
        options = self._experiment.evaluation
        best_metric = self._experiment.checkpoint.best_metric
        self.early_stop = EarlyStop(best_metric, options.patience, self._restored.get("early_stop"))
        self.metrics: dict[str, float] = self._restored.get("metrics", {})
        self.full_metrics: dict[str, float] = {}
        # A part that is all of the split is not evaluated twice at the end.
        is_part = options.num_videos is not None and options.num_videos < self._split.num_videos
        self._num_videos = options.num_videos if is_part else None
        self._evaluator = functools.cache(setup.make_evaluator)

    @property
    def checkpoint_metadata(self) -> dict[str, Any]:
        """What a checkpoint stores of the evaluations, beside the metrics."""
        return {"early_stop": self.early_stop.record, "whole": self.full_metrics}

    @property
    def final_metrics(self) -> dict[str, float]:
        """The metrics that the run returns: on all videos where its last evaluation is done."""
        return self.full_metrics or self.metrics

    def due(self, step: int) -> bool:
        """Returns whether to evaluate after this step."""
        every = self._setup.eval_interval
        return step == self._setup.total_steps or (every > 0 and step % every == 0)

    def resume(self, step: int, state: Any, interrupted: Callable[[], bool] | None = None) -> bool:
        """Evaluates the restored state if the run was stopped before it could; returns whether the run is finished."""
        if not self._restored:
            return False
        last = step >= self._setup.total_steps
        if self.metrics and (last or self.early_stop.over):
            self.full_metrics = self._restored.get("whole") or {}
            return True
        if not self.metrics and (last or self.due(step)):
            self.run(step, state, interrupted)
        return False

    def run(self, step: int, state: Any, interrupted: Callable[[], bool] | None = None) -> None:
        """Evaluates the parameters of a state and, where it has one, their EMA.

        The run's last evaluation, planned or by early stopping, is on all videos too; it stays in the workdir.
        EvaluationInterrupted as `Evaluator`: nothing is logged or kept. OSError where the last one read too few videos.
        """
        last = step >= self._setup.total_steps
        result = self._evaluate(step, state, self._num_videos, interrupted)
        self.metrics, before = result.scalars, copy.copy(self.early_stop)
        self.early_stop.update(step, result.scalars)
        if self.early_stop.over and not last:
            logging.info("step %d: the run ends early, %s", step, self.early_stop)
        if self.early_stop.over or last:
            try:
                if self._num_videos is not None:
                    result = self._evaluate(step, state, None, interrupted)
                if self._experiment.derive:
                    trained = self._setup.make_evaluator(self._split.num_videos, on_training_set=True)
                    trained = trained(state.params, interrupted)
                    finetuning.conclude(self._workdir, self._experiment, trained, result, self._split.class_names)
            except EvaluationInterrupted:
                self.early_stop = before  # the resumed run counts this evaluation
                raise
            self.full_metrics = result.scalars
            checkpoint, split = self._workdir / checkpointing.FOLDER / str(step), self._experiment.data.eval_split
            with storage.optional("the result of the evaluation"):
                write_result(self._workdir, result, checkpoint, split, self._split.class_names)
            if problem := result.problem(self._experiment.data.max_unreadable):
                raise OSError(problem)

    def _evaluate(self, step: int, state: Any, videos: int | None, interrupted: Callable[[], bool] | None) -> Result:
        """Evaluates and logs; the result holds the metrics of the EMA too."""
        evaluator = self._evaluator(videos)
        advice = compiled_step.evaluation_advice(self._experiment)
        with self._progress.timed("evaluation"), compiled_step.oom_advice("the evaluation", advice):
            began = time.perf_counter()
            result, ema_scalars = evaluator(state.params, interrupted), {}
            if state.ema is not None:
                ema_result = evaluator(state.ema, interrupted)
                ema_scalars = {EMA + name: value for name, value in ema_result.scalars.items()}
                logging.info("step %d, averaged parameters: %s", step, ema_result.summary())
            seconds = time.perf_counter() - began
        logging.info("step %d: %s", step, result.summary())
        if problem := result.problem(self._experiment.data.max_unreadable):
            logging.error("step %d: %s", step, problem)
        result = dataclasses.replace(result, scalars=result.scalars | ema_scalars)
        logged = result.scalars | {"seconds": seconds}
        self._writer.write_scalars(step, {f"eval/{name}": value for name, value in logged.items()})
        for head, matrix in result.confusion.items() if jax.process_index() == 0 else ():
            with plots.optional(f"the confusion matrix of {head}"):
                figure = plots.confusion_matrix(matrix, self._split.class_names[head], f"{head}, step {step}")
                self._writer.write_images(step, {f"eval/confusion_{head}": plots.to_array(figure)[None]})
        return result


def write_curves(workdir: epath.PathLike) -> None:
    """Plots the training curves of the run so far to `workdir/pictures`."""
    workdir = epath.Path(workdir)
    if jax.process_index() == 0:
        with plots.optional("the training curves"):
            series = logs.read_metrics(workdir / logs.METRICS_FILE)
            plots.save(plots.training_curves(series, workdir.name), workdir / "pictures" / "training_curves.png")
