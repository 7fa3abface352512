"""How fast a run is: steps and clips a second, model FLOP utilisation, time waited for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax

from vivit_jax.models import ViViTConfig
from vivit_jax.models.flops import matrix_products

# Peak FLOP/s of one jax device in dense bfloat16 matrix products, by the beginning of its `device_kind`; the first that
# fits counts. TPU v2 and v3: 46 and 123 TFLOP/s a chip (Jouppi et al., "Ten Lessons From Three Generations Shaped
# Google's TPUv4i", ISCA 2021, table 1), of which a device is one of two cores; later ones are chips
# (cloud.google.com/tpu/docs, "system architecture"). GPUs: NVIDIA's data sheets, without sparsity; V100 and T4, which
# lack bfloat16, in half precision.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 23e12),
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA GH200", 989e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA A30", 165e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L40", 181e12),
    ("NVIDIA L4", 121e12),
    ("Tesla V100", 125e12),
    ("Tesla T4", 65e12),
)


def peak_flops(kind: str) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for one that is not in `PEAK_FLOPS`, as a CPU.

    Args:
      kind: `jax.Device.device_kind`.
    """
    return next((peak for name, peak in PEAK_FLOPS if kind.startswith(name)), None)


def model_flops(config: ViViTConfig, clips: int) -> float:
    """FLOPs that a training step needs: 6 for each multiply-add of the forward pass's matrix products.

    2 forward, twice as many backward, as model FLOP utilisation is defined (PaLM, arXiv:2204.02311, appendix B): what
    the matrix products take by the architecture alone. What `remat` computes again, frozen parts, a second pass (SAM)
    and the optimizer do not count.

    Args:
      config: the architecture.
      clips: in the global batch.
    """
    return 6.0 * clips * sum(matrix_products(config).values())


class Throughput:
    """Measures the training steps between two readings; evaluations and the like are taken out by `paused`.

    Args:
      clips: in the global batch.
      devices: of all processes.
      flops: of a step, all devices together.
      peak: FLOP/s of one device at its best; None: no utilisation is told.
      clock: seconds.
    """

    def __init__(
        self,
        clips: int,
        devices: int,
        flops: float,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._clips, self._devices, self._flops, self._peak, self._clock = clips, devices, flops, peak, clock
        self._since: tuple[int, float] | None = None
        self._waited: dict[int, float] = {}

    def start(self, step: int) -> None:
        """The time of the steps after `step` begins now: call it when `step` is done on the devices."""
        self._since = (step, self._clock())

    @contextlib.contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Around taking the batch of a step."""
        began = self._clock()
        yield
        self._waited[step] = self._clock() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training, when no step is under way on the devices."""
        began = self._clock()
        yield
        if self._since is not None:
            self._since = (self._since[0], self._since[1] + self._clock() - began)

    def read(self, step: int) -> dict[str, float]:
        """What was measured since the last reading, and begins anew; call it when `step` is done on the devices.

        Returns:
          `steps_per_second`, `clips_per_second`, `clips_per_second_per_device`, `data_wait_seconds` (for a step, that
          the host waited for its batch), `model_flop_utilisation` in [0, 1] where the devices' peak is known. Empty
          where no step was measured.
        """
        now = self._clock()
        waited = [self._waited.pop(number) for number in sorted(self._waited) if number <= step]
        before, self._since = self._since, (step, now)
        if before is None or step <= before[0] or now <= before[1]:
            return {}
        steps = step - before[0]
        speed = steps / (now - before[1])
        found = {
            "steps_per_second": speed,
            "clips_per_second": speed * self._clips,
            "clips_per_second_per_device": speed * self._clips / self._devices,
            "data_wait_seconds": sum(waited[-steps:]) / steps,
        }
        if self._peak is not None:
            found["model_flop_utilisation"] = speed * self._flops / (self._devices * self._peak)
        return found


def of_run(config: ViViTConfig, clips: int, peak: float | None = None) -> Throughput:
    """The measurement of a run on all devices.

    Args:
      config: the model.
      clips: in the global batch.
      peak: FLOP/s of one device; None: as `PEAK_FLOPS` has it.
    """
    device = jax.devices()[0]
    peak = peak if peak is not None else peak_flops(device.device_kind)
    return Throughput(clips, jax.device_count(), model_flops(config, clips), peak)
