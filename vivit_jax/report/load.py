"""What a run left in its workdir, read back; nothing of it needs a device or the data set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config.experiment import Experiment, default_config
from vivit_jax.config.fields import flat
from vivit_jax.evaluation import metrics, predictions, results
from vivit_jax.models import abstract_params
from vivit_jax.utils import logs
from vivit_jax.utils.trees import path_name

CONFIG_FILE, INIT_REPORT = "config.json", "init_report.txt"
Series = Mapping[str, Sequence[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class Video:
    """One evaluated video.

    Attributes:
      index: its place in the split.
      name: as in the records' index.
      loss: summed over the heads.
      heads: {head: a line of `predictions.read`}.
    """

    index: int
    name: str
    loss: float
    heads: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files tell it; an absent file gives an empty value.

    Attributes:
      workdir: the run's folder.
      config: the resolved config, nested.
      series: {name: [(step, value), ...]} of `metrics.jsonl`.
      times: (first, last) line of `metrics.jsonl`, in Unix seconds; None without lines.
      evaluation: `evaluation.json`.
      videos: the evaluated videos that could be read, by rising index.
      meta: the description of the newest checkpoint, without its checksums.
      checkpoints: steps on disk.
      init_report: what became of the weights that the run started from.
    """

    workdir: epath.Path
    config: Mapping[str, Any]
    series: Series
    times: tuple[float, float] | None
    evaluation: Mapping[str, Any]
    videos: Sequence[Video]
    meta: Mapping[str, Any]
    checkpoints: Sequence[int]
    init_report: str

    @property
    def class_names(self) -> dict[str, list[str]]:
        """{head: names}, by class id, of the evaluation or else of the checkpoint."""
        if "classes" in self.evaluation:
            return {head: [row["name"] for row in rows] for head, rows in self.evaluation["classes"].items()}
        return dict(self.meta.get("class_names", {}))

    @property
    def last_step(self) -> int:
        """The newest step that anything is known of."""
        return max([points[-1][0] for points in self.series.values()] + list(self.checkpoints), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps that the config asks for; None where it counts in epochs of data that no checkpoint tells of."""
        if not self.config:
            return None
        videos = self.meta.get("data", {}).get("examples")
        experiment = _experiment(self.config)
        if experiment is None or (videos is None and experiment.num_steps is None):
            return None
        return experiment.total_steps(videos or 0)

    def changed(self) -> list[tuple[str, Any, Any]]:
        """(field, value, default) of every field of the config that is not its default."""
        known = flat(Experiment.from_config(default_config()).to_dict())
        absent = object()
        return [
            (name, value, known.get(name))
            for name, value in flat(self.config).items()
            if value != known.get(name, absent)
        ]

    def confusion(self, head: str) -> np.ndarray | None:
        """int [C, C], rows the truth; None where the head has several labels at once, or no video is known."""
        numbers = {name: number for number, name in enumerate(self.class_names[head])}
        rows = [video.heads[head] for video in self.videos if head in video.heads]
        if not rows or "accuracy" not in self.evaluation["classes"][head][0]:
            return None
        matrix = np.zeros((len(numbers), len(numbers)), np.int64)
        for row in rows:
            matrix[numbers[row["truth"]], numbers[row["ranked"][0][0]]] += 1
        return matrix

    def parameters(self) -> dict[str, int]:
        """{part of the model: its parameters}; empty where config or classes are not known."""
        experiment = _experiment(self.config) if self.config and self.class_names else None
        if experiment is None:
            return {}
        import jax

        model = experiment.model_config({head: len(names) for head, names in self.class_names.items()})
        counts: dict[str, int] = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(abstract_params(model))[0]:
            part = path_name(path).partition("/")[0]
            counts[part] = counts.get(part, 0) + int(np.prod(leaf.shape))
        return counts


def read_run(workdir: epath.PathLike) -> Run:
    """Reads a run's workdir.

    Raises:
      FileNotFoundError: there is neither `config.json` nor `metrics.jsonl` nor `evaluation.json`.
      ValueError: a file that is there is not what it should be.
    """
    workdir = epath.Path(workdir)
    files = (CONFIG_FILE, logs.METRICS_FILE, results.RESULT_FILE)
    if not any((workdir / name).exists() for name in files):
        raise FileNotFoundError(
            f"no run in {workdir}: there is none of {', '.join(files)}; give the --workdir of a run"
        )
    init = workdir / INIT_REPORT
    steps = _steps(workdir / checkpointing.FOLDER)
    return Run(
        workdir=workdir,
        config=_config(workdir / CONFIG_FILE),
        series=logs.read_metrics(workdir / logs.METRICS_FILE),
        times=_times(workdir / logs.METRICS_FILE),
        evaluation=_json(workdir / results.RESULT_FILE),
        videos=_videos(workdir / predictions.FILE),
        # Read as a file: Orbax's manager would wait for the other processes, and the run's own may still be open.
        meta=_json(workdir / checkpointing.FOLDER / str(steps[-1]) / checkpointing.META / "metadata") if steps else {},
        checkpoints=steps,
        init_report=init.read_text() if init.exists() else "",
    )


def _config(path: epath.Path) -> dict[str, Any]:
    """Returns the run's config under the current field names; as it is stored if this version cannot read it."""
    stored = _json(path)
    experiment = _experiment(stored) if stored else None
    return experiment.to_dict() if experiment else stored


def _experiment(config: Mapping[str, Any]) -> Experiment | None:
    try:
        return Experiment.from_config(config)
    except ValueError as error:  # of another version
        logging.warning("The run's config is not one of this version: %s", error)
        return None


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); move it away to have a report without it") from None
    found.pop("checksums", None)
    return found


def _times(path: epath.Path) -> tuple[float, float] | None:
    lines = path.read_text().splitlines() if path.exists() else []
    times = []
    for line in lines[:1] + lines[-2:]:
        try:
            times.append(float(json.loads(line)["time"]))
        except (json.JSONDecodeError, KeyError):
            continue  # cut short by a kill
    return (times[0], times[-1]) if times else None


def _steps(folder: epath.Path) -> list[int]:
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else []


def _videos(path: epath.Path) -> list[Video]:
    if not path.exists():
        return []
    heads: dict[int, dict[str, Any]] = {}
    for row in predictions.read(path):
        if row["ranked"]:
            heads.setdefault(row["index"], {})[row["head"]] = row
    return [
        Video(
            index,
            next(iter(rows.values()))["video"],
            sum(row["loss"] for head, row in rows.items() if head != metrics.ACTION),
            rows,
        )
        for index, rows in sorted(heads.items())
    ]
