"""Evaluations in the course of a run: raw and averaged weights, on a part of the videos or all; when to stop early."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from clu import metric_writers
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.evaluation import evaluate
from vivit_jax.evaluation.evaluator import Evaluator
from vivit_jax.evaluation.metrics import accuracy_names, scalar_name
from vivit_jax.train import compiled_step
from vivit_jax.utils import logs, plots

EMA = "ema/"  # in front of the metrics of the averaged weights


def check_metric(experiment: Experiment, heads: Mapping[str, int], multi_label: frozenset[str] = frozenset()) -> None:
    """Raises ConfigError unless the evaluation measures `checkpoint.best_metric`.

    Args:
      experiment: the run.
      heads: {head: classes} of what is evaluated.
      multi_label: heads with several labels at once.
    """
    known = accuracy_names(heads, multi_label) + [scalar_name(head, "loss", heads) for head in heads]
    if experiment.optimizer.ema_decay:
        known += [EMA + name for name in known]
    name = experiment.checkpoint.best_metric
    if name not in known:
        averaged = " (config.optimizer.ema_decay is off, so no weights are averaged)" if name.startswith(EMA) else ""
        raise ConfigError(
            f"checkpoint.best_metric={name!r} is not measured on {experiment.data.name}{averaged}; "
            f"choose one of {', '.join(known)}"
        )


class EarlyStop:
    """Counts the evaluations since the best one; its record goes into each checkpoint, so that it outlives a restart.

    Args:
      metric: `checkpoint.best_metric`.
      patience: evaluations in a row without improvement after which a run is over; 0: never.
      record: `record` of the checkpoint that the run goes on from; of another metric it counts for nothing.
    """

    def __init__(self, metric: str, patience: int, record: Mapping[str, Any] | None = None):
        self._metric, self._patience = metric, patience
        record = record if record and record["metric"] == metric else {}
        self._best, self._step, self._since = (record.get(name) for name in ("best", "step", "since"))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """One more evaluation. A metric that is not a number is no improvement."""
        value = checkpointing.score(metrics, self._metric)
        best = checkpointing.score({self._metric: self._best} if self._best is not None else None, self._metric)
        if value > best:
            self._best, self._step, self._since = metrics[self._metric], step, 0
        else:
            self._since = (self._since or 0) + 1

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return 0 < self._patience <= (self._since or 0)

    @property
    def record(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"metric": self._metric, "best": self._best, "step": self._step, "since": self._since}

    def __str__(self) -> str:
        best = f"{self._metric} {self._best:.4f} at step {self._step}" if self._best is not None else "none"
        return f"{self._since} evaluations in a row brought no improvement (best: {best})"


class Evaluations:
    """Evaluates a run's state; the numbers go to the log, the pictures to TensorBoard.

    Args:
      experiment: the run.
      make: `(videos or None) -> Evaluator`.
      workdir: gets `evaluation.json` and the like of the last evaluation.
      split: what is evaluated, for its name and its classes.
      writer: gets `eval/NAME`, and `eval/seconds`.
      progress: shows the summary.
      record: of the `EarlyStop` in the checkpoint that the run goes on from.

    Attributes:
      early_stop: what is known of improvement.
      whole: the metrics of the run's last evaluation, on all videos; empty before it.
    """

    def __init__(
        self,
        experiment: Experiment,
        make: Callable[[int | None], Evaluator],
        workdir: epath.PathLike,
        split: Any,
        writer: metric_writers.MetricWriter,
        progress: logs.Progress,
        record: Mapping[str, Any] | None = None,
    ):
        self._experiment, self._make, self._workdir, self._split = experiment, make, epath.Path(workdir), split
        self._writer, self._progress = writer, progress
        metric, videos = experiment.checkpoint.best_metric, experiment.evaluation.num_videos
        self.early_stop = EarlyStop(metric, experiment.evaluation.patience, record)
        # A part that is all of it is not evaluated twice at the end.
        self._part = videos if videos is not None and videos < split.num_videos else None
        self.whole: dict[str, float] = {}
        self._evaluators: dict[int | None, Evaluator] = {}

    @property
    def over(self) -> bool:
        """Whether the run is to end, for want of improvement."""
        return self.early_stop.over

    def __call__(self, step: int, state: Any, last: bool = False) -> dict[str, float]:
        """Evaluates the parameters of a state and, where it holds one, their average.

        Args:
          step: of the state.
          state: a `TrainState`.
          last: of the run: then it is evaluated on all videos too, which stays in the workdir and in `whole`. So it is
            where this evaluation ends the run early.

        Returns:
          The metrics by name, those of the average with `ema/` in front: always on the same videos, a part or all of
          them, so that steps can be compared.
        """
        result = whole = self._run(step, state, self._part)
        self.early_stop.update(step, result.scalars)
        if self.over and not last:
            self._progress.write(f"step {step}: the run ends early, {self.early_stop}")
        if self.over or last:
            if self._part is not None:
                whole = self._run(step, state, None)
            self.whole = whole.scalars
            where = self._workdir / checkpointing.FOLDER / str(step)
            evaluate.write_result(
                self._workdir, whole, where, self._experiment.data.eval_split, self._split.class_names
            )
        return result.scalars

    def _run(self, step: int, state: Any, videos: int | None) -> evaluate.Result:
        """One evaluation on so many videos, logged."""
        evaluator = self._evaluator(videos)
        advice = compiled_step.evaluation_advice(self._experiment)
        with self._progress.report.timed("evaluation"), compiled_step.advised("the evaluation", advice):
            began = time.perf_counter()
            result, both = evaluator(state.params), {}
            if state.ema is not None:
                averaged = evaluator(state.ema)
                both = {EMA + name: value for name, value in averaged.scalars.items()}
                self._progress.write(f"step {step}, averaged weights: {averaged.summary()}")
            seconds = time.perf_counter() - began
        self._progress.write(f"step {step}: {result.summary()}")
        result = dataclasses.replace(result, scalars=result.scalars | both)
        numbers = result.scalars | {"seconds": seconds}
        self._writer.write_scalars(step, {f"eval/{name}": value for name, value in numbers.items()})
        self._show_confusion(step, result)
        return result

    def _evaluator(self, videos: int | None) -> Evaluator:
        if videos not in self._evaluators:
            self._evaluators[videos] = self._make(videos)
        return self._evaluators[videos]

    def _show_confusion(self, step: int, result: evaluate.Result) -> None:
        """The confusion matrices as images in TensorBoard."""
        for head, matrix in result.confusion.items() if jax.process_index() == 0 else ():
            figure = plots.confusion_matrix(matrix, self._split.class_names[head], f"{head}, step {step}")
            self._writer.write_images(step, {f"eval/confusion_{head}": plots.to_array(figure)[None]})
            plots.close(figure)


def write_curves(workdir: epath.PathLike) -> None:
    """The training curves of all of a run so far, as PNG in `workdir/pictures`."""
    workdir = epath.Path(workdir)
    if jax.process_index() == 0:
        series = logs.read_metrics(workdir / logs.METRICS_FILE)
        plots.save(plots.training_curves(series, workdir.name), workdir / "pictures" / "training_curves.png")
