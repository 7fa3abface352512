"""Memory of compiled programs and of devices."""

import os
from pathlib import Path
from typing import Any

import jax

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_bytes(memory: Any, platform: str) -> int:
    """Returns the peak memory of a program on each device in bytes, its code included.

    `memory` is its `memory_analysis()`. On 'tpu' it is the compiler's `peak_memory_in_bytes`. Other backends leave the
    temporaries out of it, so theirs is an upper bound: the sum of arguments, results and temporaries.
    """
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
