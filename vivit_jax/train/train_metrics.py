"""Training metrics averaged over windows of steps, fetched asynchronously."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import metrics as clu_metrics

from vivit_jax.train.hooks import Hook
from vivit_jax.train.throughput import Throughput

_LATEST = ("learning_rate", "skipped_in_a_row")  # per-step values: the latest is logged; counters are summed
SKIPPED = "skipped"


class TrainMetrics(Hook):
    """Logs the training metrics, averaged on the devices over windows of steps (a clu collection).

    Steps that the guard skipped are left out of the averages, which their values would spoil; their number is logged as
    `skipped`. A window is fetched only when the next step has been dispatched, so that the devices never wait for the
    log. Throughput is read with each window.
    """

    def __init__(self, writer: Any, throughput: Throughput, every_steps: int = 1):
        self._writer, self._throughput = writer, throughput
        self._every_steps = every_steps
        self._open: tuple[int, Any] | None = None  # (newest step, collection)
        self._complete: tuple[int, Any] | None = None
        self._merge: Callable[..., Any] | None = None

    def after_step(self, step: int, state: Any, metrics: Mapping[str, jax.Array], *_: Any) -> None:
        """Adds a step to the open window, and writes the window that the step before completed."""
        if self._merge is None:
            self._merge = _merger(metrics)
        self._open = (step, self._merge(self._open[1] if self._open else None, dict(metrics)))
        self._write()
        if step % self._every_steps == 0:
            self._complete, self._open = self._open, None

    def flush(self, *_: Any) -> None:
        self._write()

    def close(self, failed: bool) -> None:
        """Writes the last window, even if it is shorter than the others."""
        if not failed:
            self._write()
            self._complete, self._open = self._open, None
            self._write()

    def _write(self) -> None:
        if self._complete is None:
            return
        (step, window), self._complete = self._complete, None
        values = {name.replace("__", "/"): float(value) for name, value in window.compute().items()}
        speed = self._throughput.read(step)
        self._writer.write_scalars(step, {f"train/{name}": value for name, value in (values | speed).items()})
        shown = values | {name: value for name, value in speed.items() if name == "clips_per_second"}
        logging.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in sorted(shown.items())))


def _merger(metrics: Mapping[str, Any]) -> Callable[..., Any]:
    """Returns `(window or None, metrics of a step) -> window`, jitted."""
    types = {name.replace("/", "__"): _metric_type(name) for name in metrics}
    collection = clu_metrics.Collection.create(**types)

    def merge(old: Any, new: Mapping[str, jax.Array]) -> Any:
        update = collection.single_from_model_output(**new)
        return update if old is None else old.merge(update)

    return jax.jit(merge)


def _metric_type(name: str) -> type[clu_metrics.Metric]:
    if name.startswith(_LATEST):
        return clu_metrics.LastValue.from_output(name)
    if name == SKIPPED:
        return _Sum.from_output(name)

    def unskipped(**metrics: jax.Array) -> dict[str, jax.Array]:
        value = metrics[name]
        return {"values": value[None], "mask": 1.0 - metrics.get(SKIPPED, jnp.zeros_like(value))[None]}

    return clu_metrics.Average.from_fun(unskipped)


class _Sum(clu_metrics.Average):
    """Sum over steps."""

    def compute(self) -> Any:
        return self.total
