"""What training logs: steps and clips per second, FLOP utilisation, time spent waiting for data; averaged metrics."""

import math
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from vivit_jax.models import ViViTConfig
from vivit_jax.models.flops import matrix_products

# Beginning of a `device_kind` -> peak FLOP/s of one jax device in bfloat16; the first match counts.
PEAK_FLOPS: Mapping[str, float] = tomllib.loads(Path(__file__).with_name("peak_flops.toml").read_text(encoding="utf-8"))


def peak_flops(kind: str) -> float | None:
    """Returns the peak FLOP/s in bfloat16 of a `device_kind`; None if not in `PEAK_FLOPS`, such as a CPU."""
    return next((peak for prefix, peak in PEAK_FLOPS.items() if kind.startswith(prefix)), None)


def model_flops(config: ViViTConfig, clips: int) -> float:
    """Returns the FLOPs of a training step on `clips`: 6 for each multiply-add of the forward pass's matrix products.

    2 forward and 4 backward, by the definition of model FLOP utilisation (PaLM, arXiv:2204.02311, appendix B).
    Recomputation (`remat`), frozen parts, SAM's second pass and the optimizer do not count.
    """
    return 6.0 * clips * sum(matrix_products(config).values())


class Throughput:
    """Measures the training steps between two readings, without evaluations and the like (`paused`).

    `clips` are those of the global batch, `devices` and `flops` (of a step) those of all processes; `peak`: FLOP/s of
    one device (None: unknown, no utilisation is reported).
    """

    def __init__(self, clips: int, devices: int, flops: float, peak: float | None = None):
        self._clips, self._devices, self._flops, self._peak = clips, devices, flops, peak
        self._measured_since: tuple[int, float] | None = None  # (step, time)
        self._waits: dict[int, float] = {}  # seconds by step

    def start(self, step: int) -> None:
        """Starts the measurement after a step, the first, which is done when this is called."""
        self._measured_since = (step, time.perf_counter())

    def waited(self, step: int, seconds: float) -> None:
        """Counts the seconds in which the host waited for the batch of a step."""
        self._waits[step] = seconds

    def paused(self, seconds: float) -> None:
        """Leaves out the seconds that evaluation and saving took."""
        step, since = self._measured_since
        self._measured_since = (step, since + seconds)

    def read(self, step: int) -> dict[str, float]:
        """Returns what was measured since the last reading, empty without steps; call it when `step` is done.

        `data_wait_seconds` is the time per step in which the host waited for its batch; `model_flop_utilisation`, in
        [0, 1], is there where the devices' peak is known.
        """
        now = time.perf_counter()
        waits = [self._waits.pop(number) for number in sorted(self._waits) if number <= step]
        previous, self._measured_since = self._measured_since, (step, now)
        if previous is None or step <= previous[0] or now <= previous[1]:
            return {}
        steps = step - previous[0]
        speed = steps / (now - previous[1])
        values = {
            "steps_per_second": speed,
            "clips_per_second": speed * self._clips,
            "clips_per_second_per_device": speed * self._clips / self._devices,
            "data_wait_seconds": sum(waits[-steps:]) / steps,
        }
        if self._peak is not None:
            values["model_flop_utilisation"] = speed * self._flops / (self._devices * self._peak)
        return values


_LATEST = ("learning_rate", "skipped_in_a_row")  # per-step values: the latest is logged; counters are summed
SKIPPED = "skipped"


class TrainMetrics:
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

    def after_step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds a step to the open window, and writes the window that the step before completed."""
        self._open = (step, _add(self._open[1] if self._open else None, dict(metrics)))
        self.flush()
        if step % self._every_steps == 0:
            self._complete, self._open = self._open, None

    def finish(self) -> None:
        """Writes the last window, even if it is shorter than the others."""
        self.flush()
        self._complete, self._open = self._open, None
        self.flush()

    def flush(self) -> None:
        """Writes a complete window; waits for the devices."""
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
