"""Training metrics averaged over windows of steps, fetched asynchronously."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from vivit_jax.train.hooks import Hook
from vivit_jax.train.throughput import Throughput

_LATEST = ("learning_rate", "skipped_in_a_row")  # per-step values: the latest is logged; counters are summed
SKIPPED = "skipped"


class TrainMetrics(Hook):
    """Logs the training metrics, averaged over windows of steps, which are summed on the devices.

    Steps that the guard skipped are left out of the averages, which their values would spoil; their number is logged as
    `skipped`. A window is fetched only when the next step has been dispatched, so that the devices never wait for the
    log. Throughput is read with each window.
    """

    def __init__(self, writer: Any, throughput: Throughput, every_steps: int = 1):
        self._writer, self._throughput = writer, throughput
        self._every_steps = every_steps
        self._open: tuple[int, Any] | None = None  # (newest step, result of `_add`)
        self._complete: tuple[int, Any] | None = None

    def after_step(self, step: int, state: Any, metrics: Mapping[str, jax.Array], *_: Any) -> None:
        """Adds a step to the open window, and writes the window that the step before completed."""
        self._open = (step, _add(self._open[1] if self._open else None, dict(metrics)))
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
        (sums, taken), newest = jax.device_get(window)
        values = {name: float(total / taken) if taken else math.nan for name, total in sums.items()}
        values |= {name: float(newest[name]) for name in values if name.startswith(_LATEST)}
        values |= {name: float(sums[name]) for name in values if name == SKIPPED}
        speed = self._throughput.read(step)
        self._writer.write_scalars(step, {f"train/{name}": value for name, value in (values | speed).items()})
        shown = values | {name: value for name, value in speed.items() if name == "clips_per_second"}
        logging.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in sorted(shown.items())))


@jax.jit
def _add(window: Any, metrics: Mapping[str, jax.Array]) -> Any:
    """Adds a step to a window, None for an empty one: ((sums over the steps taken, their number), newest metrics)."""
    taken = 1.0 - metrics.get(SKIPPED, jnp.zeros(()))
    step = {name: value if name == SKIPPED else jnp.where(taken, value, 0.0) for name, value in metrics.items()}, taken
    return step if window is None else jax.tree.map(jnp.add, window[0], step), metrics
