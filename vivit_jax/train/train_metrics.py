"""What a run tells of its training steps, without making the devices wait: averages over windows, and a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metric_writers
from clu import metrics as clu_metrics

from vivit_jax.train.throughput import Throughput
from vivit_jax.utils import logs

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
