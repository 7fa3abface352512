"""What a run tells of its training steps, without making the devices wait: averages over windows, and a profile."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import metric_writers
from clu import metrics as clu_metrics
from etils import epath

from vivit_jax import logs
from vivit_jax.data import storage
from vivit_jax.throughput import Throughput

PROFILE_FOLDER = "profile"  # inside a run's workdir
# Of a step, not of its examples: the newest value is told, and what counts steps is added up.
_NEWEST = ("learning_rate", "skipped_in_a_row")
SKIPPED = "skipped"


class TrainingWindow:
    """Averages of the training metrics over some steps, as a clu collection on the device.

    A step that the guard skipped is left out of the averages, whose numbers it would spoil; how many were is told as
    `skipped`. A window is fetched only when the step after it has been dispatched, so that the device never waits for
    the log.

    Args:
      writer: gets `train/NAME`.
      progress: shows them.
      throughput: is read with each window.
    """

    def __init__(self, writer: metric_writers.MetricWriter, progress: logs.Progress, throughput: Throughput):
        self._writer, self._progress, self._throughput = writer, progress, throughput
        self._open: tuple[int, Any] | None = None
        self._closed: tuple[int, Any] | None = None
        self._merge: Callable[..., Any] | None = None

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """The metrics of one more step, still on the device."""
        if self._merge is None:
            self._merge = _merger(metrics)
        self._open = (step, self._merge(self._open[1] if self._open else None, dict(metrics)))
        self._write()

    def close(self) -> None:
        """Ends the window at the newest step; it is written once the next step is under way, or by `flush`."""
        self._closed, self._open = self._open, None

    def flush(self) -> None:
        """Writes a closed window, waiting for the device."""
        self._write()

    def _write(self) -> None:
        if self._closed is None:
            return
        (step, window), self._closed = self._closed, None
        values = {name.replace("__", "/"): float(value) for name, value in window.compute().items()}
        speed = self._throughput.read(step)
        self._writer.write_scalars(step, {f"train/{name}": value for name, value in (values | speed).items()})
        self._progress.show(step, values | {n: v for n, v in speed.items() if n == "clips_per_second"})


def _merger(metrics: Mapping[str, Any]) -> Callable[..., Any]:
    """`(window or None, metrics of a step) -> window`, compiled."""
    kinds = {name.replace("/", "__"): _kind(name) for name in metrics}
    collection = clu_metrics.Collection.create(**kinds)

    def merge(old: Any, new: Mapping[str, jax.Array]) -> Any:
        update = collection.single_from_model_output(**new)
        return update if old is None else old.merge(update)

    return jax.jit(merge)


def _kind(name: str) -> type[clu_metrics.Metric]:
    if name.startswith(_NEWEST):
        return clu_metrics.LastValue.from_output(name)
    if name == SKIPPED:
        return _Sum.from_output(name)

    def taken(**metrics: jax.Array) -> dict[str, jax.Array]:
        value = metrics[name]
        return {"values": value[None], "mask": 1.0 - metrics.get(SKIPPED, jnp.zeros_like(value))[None]}

    return clu_metrics.Average.from_fun(taken)


class _Sum(clu_metrics.Average):
    """The sum over steps."""

    def compute(self) -> Any:
        return self.total


class Profiler:
    """A trace of some steps for TensorBoard and XProf (`jax.profiler`), in the workdir's `profile/`.

    Args:
      steps: (first, last) to trace; None: none.
      workdir: of the run.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: epath.PathLike):
        self._steps, self._folder = steps, epath.Path(workdir) / PROFILE_FOLDER
        self._tracing: str | None = None  # the folder that the trace under way goes to

    def step(self, step: int, before: Any) -> Any:
        """Around the dispatch of a step: a context in which the step bears its number in the trace.

        Args:
          step: counted from 1.
          before: what the steps before compute; waited for where the trace begins, so that it holds none of them.
        """
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(before)
            # jaxlib writes to disks alone.
            remote = storage.is_remote(self._folder)
            self._tracing = tempfile.mkdtemp(prefix="vivit_jax-") if remote else str(self._folder)
            jax.profiler.start_trace(self._tracing)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, results: Any) -> None:
        """Ends the trace with its last step, when that is done on the device."""
        if self._tracing and step == self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._tracing:
            written, self._tracing = self._tracing, None
            jax.profiler.stop_trace()
            if storage.is_remote(self._folder):
                storage.put_tree(written, self._folder)
                shutil.rmtree(written)
            logging.info("A profile is in %s; to see it: tensorboard --logdir=%s", self._folder, self._folder.parent)
