"""The devices that jax uses: a line in the log, warnings of idle hardware, an error without any; their memory."""

import ctypes
import glob
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import logging

# Device files of accelerators -> (what they are, the extra of this package with their jax).
_ACCELERATORS = {"/dev/nvidia[0-9]*": ("NVIDIA GPU", "cuda"), "/dev/accel*": ("TPU", "tpu")}
_LARGE = 768  # width of ViT-B
# Parameters of glibc's mallopt (malloc.h): blocks of any size come from the heap instead of from the system, the heap
# never shrinks, and all threads share it.
_MALLOC_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def announce() -> None:
    """Logs platform, kind and number of the devices; warns of an accelerator that this jax does not use."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    logging.info("jax %s on %s: %d x %s.", jax.__version__, jax.default_backend(), jax.device_count(), ", ".join(kinds))
    if jax.default_backend() != "cpu" or _requested() == "cpu":
        return
    for pattern, (name, extra) in _ACCELERATORS.items():
        if count := len(glob.glob(pattern)):
            logging.warning(
                f"This machine has {count} x {name}, but jax uses the CPU alone; to use it: pip install "
                f"'vivit_jax[{extra}]'. If that is installed, the lines of jax above say what it lacks; "
                "JAX_PLATFORMS=cpu ends this warning."
            )


def warn_of_large_model(name: str | None, hidden_size: int) -> None:
    """Warns that a model of ViT-B's width or more will train or be evaluated on a CPU."""
    if jax.default_backend() == "cpu" and hidden_size >= _LARGE:
        logging.warning(
            f"{name or 'A model'} (width {hidden_size}) on a CPU: expect seconds for each clip. On an NVIDIA GPU: pip "
            "install 'vivit_jax[cuda]', on a TPU VM: pip install 'vivit_jax[tpu]'; a smaller model: "
            "--config.model.name=ViViT-Ti/16x2"
        )


def exit_without_devices() -> None:
    """Ends the program with one line if jax cannot start its backend, as with JAX_PLATFORMS=cuda and no CUDA."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: jax's answer where the plug-in is not installed
        reason = str(error).partition("\n")[0] or "its plug-in is not installed"
        sys.exit(
            f"error: JAX_PLATFORMS={_requested()}: jax cannot start that backend ({reason}). Unset it or set "
            "JAX_PLATFORMS=cpu; pip install 'vivit_jax[cuda]' or 'vivit_jax[tpu]' for an accelerator"
        )


def _requested() -> str:
    # `utils.extras` adds the CPU.
    return (jax.config.jax_platforms or os.environ.get("JAX_PLATFORMS") or "").removesuffix(",cpu")


def keep_freed_memory() -> bool:
    """Lets glibc's allocator keep freed memory for later allocations; False where there is another C library.

    By default it returns large blocks to the system, and XLA on the CPU, which allocates buffers in each call, faults
    their pages in again: a tenth to a quarter of a train step's time (benchmarks/allocator.py). The memory of the
    process stays at its peak, and fragments: it may grow to three times what a program needs.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in _MALLOC_OPTIONS.values())


def peak_bytes(memory: Any, platform: str) -> int:
    """Returns the peak memory of a program on each device in bytes, its code included.

    `memory` is its `memory_analysis()`. On 'tpu' it is the compiler's `peak_memory_in_bytes`. Other backends leave the
    temporaries out of it, so theirs is an upper bound: the sum of arguments, results and temporaries. None gives 0.
    """
    if memory is None:
        return 0
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak, code = memory.peak_memory_in_bytes, memory.generated_code_size_in_bytes
    if platform == "tpu" and peak >= arguments:  # less than the arguments: not reported
        return peak + code
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # donated buffers are not counted twice
    return max(arguments + temporary + results, peak) + code


def device_bytes() -> int:
    """Returns the memory of a local device in bytes; on CPUs its share of the memory of the machine or container."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_LIMITS):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // jax.local_device_count()


def is_out_of_memory(error: Exception) -> bool:
    """Whether XLA ended because a program does not fit the memory of its devices."""
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
