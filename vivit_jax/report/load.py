"""The files of a run, read back; needs neither a device nor the data set."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import CONFIG_FILE, Experiment, default_config
from vivit_jax.config.fields import flat
from vivit_jax.config.sections import EMA, REPORT_FILE
from vivit_jax.evaluation import metrics, predictions, results
from vivit_jax.models import abstract_params
from vivit_jax.utils import goodput, logs

Series = Mapping[str, Sequence[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class Video:
    """An evaluated video."""

    index: int  # in the split
    name: str
    loss: float  # summed over the heads
    heads: Mapping[str, Mapping[str, Any]]  # {head: a row of `predictions.read`}


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run's files; an absent file gives an empty value."""

    workdir: epath.Path
    config: Mapping[str, Any]
    experiment: Experiment | None  # `config`, parsed; None where that is absent, or of another version
    series: Series  # {name: [(step, value), ...]} of `metrics.jsonl`
    times: Sequence[float]  # Unix seconds of the lines of `metrics.jsonl`
    evaluation: Mapping[str, Any]  # `evaluation.json`
    videos: Sequence[Video]  # the readable evaluated ones, by index
    checkpoint_metadata: Mapping[str, Any]  # of the newest checkpoint
    checkpoints: Sequence[int]  # steps
    goodput: Mapping[str, Any]  # of `goodput.read`
    init_report: str  # how the pretrained weights were fitted to the model

    @property
    def metrics(self) -> dict[str, float | None]:
        """{metric: value} of the evaluation; the names of those of averaged parameters begin with `ema/`."""
        prefix = EMA if self.evaluation.get("weights") == "ema" else ""
        return {f"{prefix}{name}": value for name, value in self.evaluation.get("metrics", {}).items()}

    @property
    def class_names(self) -> dict[str, list[str]]:
        """{head: names by class id} of the evaluation, else of the checkpoint."""
        if "classes" in self.evaluation:
            return {head: [row["name"] for row in rows] for head, rows in self.evaluation["classes"].items()}
        return dict(self.checkpoint_metadata.get("class_names", {}))

    @property
    def last_step(self) -> int:
        """The newest step with a metric or a checkpoint."""
        return max([points[-1][0] for points in self.series.values()] + list(self.checkpoints), default=0)

    @property
    def total_steps(self) -> int | None:
        """Length of the run; None where it is given in epochs, and no checkpoint states the size of the data set."""
        num_examples = self.checkpoint_metadata.get("data", {}).get("examples")
        if self.experiment is None or (num_examples is None and self.experiment.num_steps is None):
            return None
        return self.experiment.total_steps(num_examples or 0)

    def changed_fields(self) -> list[tuple[str, Any, Any]]:
        """Returns (field, value, default) of every config field that differs from its default."""
        defaults, absent = flat(Experiment.from_config(default_config()).to_dict()), object()
        fields = flat(self.config).items()
        return [(name, value, defaults.get(name)) for name, value in fields if value != defaults.get(name, absent)]

    def confusion(self, head: str) -> np.ndarray | None:
        """Returns int [C, C], true classes in rows; None for a multi-label head, or without predictions."""
        rows = [video.heads[head] for video in self.videos if head in video.heads]
        if not rows or "accuracy" not in self.evaluation["classes"][head][0]:
            return None
        ids = {name: i for i, name in enumerate(self.class_names[head])}
        truth, predicted = np.array([(ids[row["truth"]], ids[row["ranked"][0][0]]) for row in rows]).T
        return metrics.confusion_matrix(truth, predicted, len(ids))

    def parameters(self) -> dict[str, int]:
        """Returns {part of the model: number of parameters}; empty where config or classes are unknown."""
        if self.experiment is None or not self.class_names:
            return {}
        params = abstract_params(self.experiment.model_config({h: len(names) for h, names in self.class_names.items()}))
        return {part: sum(leaf.size for leaf in jax.tree.leaves(leaves)) for part, leaves in params.items()}


def read_run(workdir: epath.PathLike) -> Run:
    """Reads the workdir of a run; raises FileNotFoundError where there is none, ValueError for a malformed file."""
    workdir = epath.Path(workdir)
    files = (CONFIG_FILE, logs.METRICS_FILE, results.RESULT_FILE)
    if not any((workdir / name).exists() for name in files):
        raise FileNotFoundError(f"no run in {workdir}: none of {', '.join(files)} exists; give the --workdir of a run")
    config, init_report, experiment = _read_json(workdir / CONFIG_FILE), workdir / REPORT_FILE, None
    try:
        experiment = Experiment.from_config(config) if config else None
    except ValueError as error:
        logging.warning("The config of the run is of another version: %s", error)
    folder = workdir / checkpointing.FOLDER
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []
    return Run(
        workdir=workdir,
        config=experiment.to_dict() if experiment else config,  # under the current field names where possible
        experiment=experiment,
        series=logs.read_metrics(workdir / logs.METRICS_FILE),
        times=[row["time"] for row in logs.read_lines(workdir / logs.METRICS_FILE) if "time" in row],
        evaluation=_read_json(workdir / results.RESULT_FILE),
        videos=_read_videos(workdir / predictions.FILE),
        # Read as a file: Orbax's manager would wait for the other processes, and that of the run may still be open.
        checkpoint_metadata=_read_json(folder / str(steps[-1]) / checkpointing.META / "metadata") if steps else {},
        checkpoints=steps,
        goodput=goodput.read(workdir),
        init_report=init_report.read_text() if init_report.exists() else "",
    )


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); move it away to get a report without it") from None


def _read_videos(path: epath.Path) -> list[Video]:
    rows_of_video: dict[int, dict[str, Any]] = {}
    for row in predictions.read(path) if path.exists() else ():
        if row["ranked"]:
            rows_of_video.setdefault(row["index"], {})[row["head"]] = row
    videos = []
    for index, heads in sorted(rows_of_video.items()):
        loss = sum(row["loss"] for head, row in heads.items() if head != metrics.ACTION)
        videos.append(Video(index, next(iter(heads.values()))["video"], loss, heads))
    return videos
