"""Where a run's numbers go: TensorBoard, a JSON-lines file, the terminal or the log.

clu's writers carry the numbers; the JSON-lines writer that clu lacks, and a progress bar for terminals, are here.
"""

from __future__ import annotations

import json
import logging as standard_logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers, periodic_actions
from etils import epath
from tqdm.auto import tqdm

from vivit_jax.utils import storage

METRICS_FILE = "metrics.jsonl"
_BUCKET_SECONDS = 30.0  # between two writes of that file in a bucket


class JsonLinesWriter(metric_writers.interface.MetricWriter):
    """Scalars as one JSON object a line: {"step": ..., "time": unix seconds, NAME: number or null where not finite}.

    Lines are appended, so a resumed run goes on in the same file; where a step stands twice the later line holds. On a
    disk each line is there at once. To append to an object of a bucket is to write it anew, so that this is done every
    half minute, and at the end; a run that is killed loses the lines since.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting: list[str] = []
        self._every = _BUCKET_SECONDS if storage.is_remote(path) else 0.0
        self._written = -math.inf

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = {name: float(np.asarray(value)) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._waiting.append(json.dumps({"step": int(step), "time": round(time.time(), 3), **finite}) + "\n")
        self.flush()

    # Pictures, texts and the rest have their place in TensorBoard.
    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        del step, values, metadata

    def write_images(self, step: int, images: Any) -> None:
        del step, images

    def write_videos(self, step: int, videos: Any) -> None:
        del step, videos

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
        del step, audios, sample_rate

    def write_texts(self, step: int, texts: Any) -> None:
        del step, texts

    def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None:
        del step, arrays, num_buckets

    def write_hparams(self, hparams: Any) -> None:
        del hparams

    def flush(self) -> None:
        if time.monotonic() - self._written >= self._every:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._waiting:
            with self._path.open("a") as file:
                file.write("".join(self._waiting))
            self._waiting.clear()
            self._written = time.monotonic()


def read_metrics(path: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """The series of a `metrics.jsonl`: {name: [(step, value), ...]} by rising step, the later of two lines of a step.

    A last line cut short by a kill is left out; an absent file gives no series.
    """
    path, series = epath.Path(path), {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was killed while it wrote
        for name, value in row.items():
            if name not in ("step", "time") and value is not None:
                series.setdefault(name, {})[row["step"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def configure_logging() -> None:
    """Short lines in absl's log: the time and the message; of Orbax, which tells of every file, only warnings.

    `--verbosity=1` brings all of it back.
    """
    handler = logging.get_absl_handler()
    handler.setFormatter(standard_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_worth_showing)


def _worth_showing(record: standard_logging.LogRecord) -> bool:
    text = str(record.msg)
    if text.startswith("Setting work unit notes: "):  # clu's progress: the number is enough
        record.msg = text.removeprefix("Setting work unit notes: ")
    if logging.get_verbosity() > logging.INFO:
        return True
    if "orbax" in record.pathname:
        return (
            record.levelno >= standard_logging.WARNING
            and not text.startswith(("Given directory is read only", "CheckpointManagerOptions.read_only"))
            and "tracked_metric" not in text  # a checkpoint between two evaluations has no metrics: as intended
        )
    chatty = any(module in record.pathname for module in ("xla_bridge", "compilation_cache"))
    return not chatty or record.levelno >= standard_logging.WARNING


def make_writer(workdir: epath.PathLike) -> metric_writers.MetricWriter:
    """TensorBoard event files and `metrics.jsonl` in `workdir`, from process 0; the other processes write nothing."""
    writers: list[metric_writers.MetricWriter] = []
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        writers.append(metric_writers.SummaryWriter(str(workdir)))
        writers.append(JsonLinesWriter(workdir / METRICS_FILE))
    return metric_writers.AsyncMultiWriter(writers)


def on_terminal() -> bool:
    """Whether a person is watching: standard error is a terminal, and this is the first process."""
    return sys.stderr.isatty() and jax.process_index() == 0


class Progress:
    """How far a run is: a live bar on a terminal; else lines of clu's `ReportProgress` (steps/s, share, ETA).

    Args:
      total_steps: of the run.
      first_step: steps already taken when this run began.
      writer: is given steps/s.
      every_seconds: between two lines.
    """

    def __init__(self, total_steps: int, first_step: int, writer: metric_writers.MetricWriter, every_seconds: float):
        self._bar = None
        if on_terminal():
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, smoothing=0.05)
        self.report = periodic_actions.ReportProgress(
            num_train_steps=total_steps, writer=writer, every_secs=every_seconds
        )

    def __call__(self, step: int) -> None:
        """Call with each step taken."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        self.report(step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The newest numbers: loss and accuracy beside the bar, or all of them in a line of the log."""
        if self._bar is not None:
            shown = {name: value for name, value in values.items() if name.startswith(("loss", "accuracy"))}
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        else:
            logging.info("step %d: %s", step, ", ".join(f"{n} {v:.4g}" for n, v in sorted(values.items())))

    def write(self, text: str) -> None:
        """A line above the bar, or in the log."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            logging.info(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
