"""Logging of a run: TensorBoard and JSON-lines metrics, progress, absl log format."""

import contextlib
import io
import json
import logging as standard_logging
import math
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax.utils import storage
from vivit_jax.utils.trees import finite_or_none

MetricWriter = Any  # clu.metric_writers.MetricWriter, whose import takes seconds
METRICS_FILE = "metrics.jsonl"
_BUCKET_SECONDS = 30.0  # between two writes of metrics.jsonl in a bucket
# Modules that are not heard: Orbax and asyncio, whose errors are raised too, at all; the others below a warning.
_SILENT, _QUIET = ("orbax", "asyncio"), ("xla_bridge", "compilation_cache")


class JsonLinesWriter:
    """Writes scalars as JSON lines: {"step": ..., "time": Unix seconds, NAME: number, or null where not finite}.

    A resumed run appends to the same file; of two lines of one step the later is valid. Appending to an object in a
    bucket rewrites it, so that happens every half minute and on `close`; a killed run loses the lines since.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._pending: list[str] = []
        self._interval = _BUCKET_SECONDS if storage.is_remote(path) else 0.0
        self._last_write = -math.inf
        length = storage.size(path) if self._path.exists() else 0
        self._perhaps_torn = length > 0 and self._path.read_bytes()[-1:] != b"\n"

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = finite_or_none({name: float(np.asarray(value)) for name, value in scalars.items()})
        self._pending.append(json.dumps({"step": int(step), "time": round(time.time(), 3), **values}) + "\n")
        self.flush()

    def write_images(self, *_: Any, **__: Any) -> None:
        """Does nothing: images are for TensorBoard."""

    write_summaries = write_images  # moving images

    def flush(self) -> None:
        if time.monotonic() - self._last_write >= self._interval:
            self.close()

    def close(self) -> None:
        if self._pending:
            # A line that a kill or a full disk has cut ends before the next one begins.
            with self._path.open("a") as file:
                file.write("\n" * self._perhaps_torn + "".join(self._pending))
                self._perhaps_torn = True  # unless closing the file, which writes, succeeds
            self._perhaps_torn = False
            self._pending.clear()
            self._last_write = time.monotonic()


def read_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Yields the lines of a `metrics.jsonl`; skips damaged ones, e.g. cut short by a kill. An absent file has none."""
    path = epath.Path(path)
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(TypeError, ValueError):
            if "step" in (row := dict(json.loads(line))):
                yield row


def read_metrics(path: epath.PathLike) -> dict[str, list[tuple[int, float]]]:
    """Returns {name: [(step, value), ...]} of a `metrics.jsonl`, by rising step; the later of two lines of a step."""
    series: dict[str, dict[int, float]] = {}
    for row in read_lines(path):
        for name, value in row.items():
            if name not in ("step", "time") and value is not None:
                series.setdefault(name, {})[row["step"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def configure_logging() -> None:
    """Shortens absl's log lines to time and message, and hides those of Orbax, and XLA's below warnings.

    `--verbosity=1` shows all lines.
    """
    handler = logging.get_absl_handler()
    handler.setFormatter(standard_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_relevant)
    sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: Any) -> None:
    """Shows an exception that Python cannot raise; not those of TensorStore, one for each array of a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed" or logging.get_verbosity() > logging.INFO:
        sys.__unraisablehook__(unraisable)


def _is_relevant(record: standard_logging.LogRecord) -> bool:
    text = str(record.msg)
    if text.startswith("Setting work unit notes: "):  # prefix of clu's progress lines
        record.msg = text.removeprefix("Setting work unit notes: ")
    if logging.get_verbosity() > logging.INFO:
        return True
    quiet = _QUIET if record.levelno < standard_logging.WARNING else ()
    return not any(module in record.pathname for module in (*_SILENT, *quiet))


class _OptionalWriter:
    """A writer whose disk may fail: training goes on without its log."""

    def __init__(self, writer: MetricWriter, name: str):
        self._writer, self._name = writer, name

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            with storage.optional(self._name):
                getattr(self._writer, method)(*args, **kwargs)

        return call


def make_writer(workdir: epath.PathLike) -> MetricWriter:
    """Returns a writer of TensorBoard event files and `metrics.jsonl`; only process 0 writes.

    Imports TensorFlow, which `data.host_tf.load` should have configured before.
    """
    metric_writers = _import_clu_writers()
    writers: list[MetricWriter] = []
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        with storage.optional(name := "the log for TensorBoard"):
            writers.append(_OptionalWriter(metric_writers.SummaryWriter(str(workdir)), name))
        writers.append(_OptionalWriter(JsonLinesWriter(workdir / METRICS_FILE), METRICS_FILE))
    return metric_writers.AsyncMultiWriter(writers)


def write_clips(writer: MetricWriter, step: int, name: str, clips: np.ndarray) -> None:
    """Writes the first clips of a batch, uint8 [B, T, H, W, 3], as one GIF among TensorBoard's images."""
    from PIL import Image
    from tensorboard.plugins.image.metadata import create_summary_metadata

    spacing = -(-clips.shape[2] // 160)  # of the pixels taken from large frames
    first, *others = map(Image.fromarray, np.concatenate(clips[:4, :, ::spacing, ::spacing], axis=2))
    first.save(gif := io.BytesIO(), "GIF", save_all=True, append_images=others, duration=120, loop=0)
    image = np.array([str(first.width), str(first.height), gif.getvalue()], object)
    writer.write_summaries(step, {name: image}, {name: create_summary_metadata(display_name=None, description="")})


def _import_clu_writers() -> types.ModuleType:
    """Imports clu's writers, but not Keras, which TensorBoard's plug-in for hyperparameters (unused) takes a base class
    from: that takes as long as the rest."""
    keras_callback = types.ModuleType("tensorboard.plugins.hparams._keras")
    keras_callback.Callback = None
    absent = sys.modules.setdefault(keras_callback.__name__, keras_callback) is keras_callback
    from clu import metric_writers

    if absent:
        del sys.modules[keras_callback.__name__]
    return metric_writers
