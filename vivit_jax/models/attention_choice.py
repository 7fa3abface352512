"""What each attention backend can do, and which one `attention_backend="auto"` takes."""

import dataclasses
import functools
import re

from absl import logging

ATTENTION_BACKENDS = ("auto", "xla", "tiled", "cudnn", "splash")
_log_once = functools.cache(logging.info)


@dataclasses.dataclass(frozen=True)
class Device:
    """The devices that a program is compiled for; they need not be attached."""

    platform: str  # 'cpu', 'gpu' or 'tpu'
    kind: str = ""  # jax's `device_kind`
    compute_capability: str | None = None  # of a GPU; None: not known
    jax_version: tuple[int, ...] = (0, 12)


@dataclasses.dataclass(frozen=True)
class Attention:
    """What one attention layer asks of a backend."""

    keys: int  # tokens attended to
    head_dim: int
    dtype: str  # of queries, keys and values
    training: bool = False  # with gradients
    dropout: bool = False  # of the attention weights, in this call
    logit_cap: bool = False


def fastest(attention: Attention, device: Device) -> str:
    """Returns the backend that is the fastest by measurements, whether or not it can do what is asked.

    `xla` also for the 16 and 17 tokens of Model 3's and 4's time axis and of Model 2's temporal encoder.
    """
    keys, dtype = attention.keys, attention.dtype
    # benchmarks/device.py, H200: a train step is 1.4 times as fast at 197 tokens, 3.8 times at 3,137, 0.93 times at 16.
    if device.platform == "gpu" and dtype == "bfloat16" and keys >= 64:
        return "cudnn"
    # Compiled for v3 and v5e with gradients, 12 heads of 64: HBM traffic of `xla` over `splash` 1.1 and 1.8 at 197
    # tokens, where padding to 256 costs as much, 2.7 and 7.8 at 512, 5.2 and 48 at 1,024; 14 and 47 at 3,137 (heads of
    # 80). benchmarks/attention.py times them on a TPU.
    if device.platform == "tpu" and dtype != "float64" and keys >= 512:
        return "splash"
    # benchmarks/attention.py, two cores of an Intel Xeon with AMX: from 512 tokens as fast as `xla` or faster with
    # gradients, in a thirtieth of the memory. Without gradients jax 0.12 fuses `xla`, which is then the fastest; before
    # it, `tiled` is 1.7 (jax 0.11) to 2.3 times (jax 0.10) as fast at 3,137 tokens.
    if device.platform == "cpu" and keys >= 512 and (attention.training or device.jax_version < (0, 12)):
        return "tiled"
    return "xla"


def choose_backend(name: str, attention: Attention, device: Device) -> str:
    """Returns the backend of an attention layer on a device: `name`, or the `fastest` for "auto".

    `auto` passes over a backend that cannot do what is asked, with a line in the log; a named one raises ValueError.
    """
    chosen = fastest(attention, device) if name == "auto" else name
    if (reason := refusal(chosen, attention, device)) is None:
        return chosen
    if name != "auto":
        raise ValueError(f"attention_backend={name!r} {reason}; use attention_backend='auto'")
    _log_once(f"Attention backend {chosen} is passed over: it {reason}.")
    return "xla"


def refusal(name: str, attention: Attention, device: Device | None = None) -> str | None:
    """Returns why a backend cannot do what is asked, as the end of a sentence; None if it can. Device None: any."""
    if name == "cudnn":
        if attention.dtype != "bfloat16":
            return f"computes in bfloat16, not in {attention.dtype}"
        if attention.head_dim % 8 or attention.head_dim > 128:
            return f"needs a head_dim that is a multiple of 8 and at most 128, not {attention.head_dim}"
        if attention.logit_cap:
            return "has no attention_logit_cap"
        if device and device.platform != "gpu":
            return f"needs an NVIDIA GPU, the devices are {device.kind or device.platform}"
        # AMD's GPUs have names, as gfx90a.
        if device and device.compute_capability and not re.match(r"([89]|\d\d)\.", device.compute_capability):
            capability = device.compute_capability
            return f"needs an NVIDIA GPU of compute capability 8.0 or higher, {device.kind} has {capability}"
    if name == "splash":
        if attention.dtype == "float64":
            return "computes in bfloat16 or float32, not in float64"
        if device and device.platform != "tpu":
            return f"needs a TPU, the devices are {device.kind or device.platform}"
    if name in ("cudnn", "splash") and attention.dropout:
        return "has no dropout of attention weights (attention_dropout_rate)"
    return None
