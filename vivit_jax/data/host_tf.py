"""TensorFlow as this package uses it, on the host's CPU to feed frames. Import `tf` from here.

The accelerators belong to JAX: without the line below, TensorFlow would reserve all memory of every GPU it sees.
"""

import ctypes
import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN prints a message on stderr at every start, and does not speed up this pipeline.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

# Options M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h -> limit in bytes: at most the largest `int`.
_MALLOC_LIMITS = {-3: 1 << 30, -1: 2**31 - 1}


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the C library keep the memory of freed frames and batches for the next ones; returns whether it will.

    By default glibc returns large blocks (a batch, a clip, often a frame) to the kernel, so that each begins with
    thousands of page faults, an eighth of a clip's time (`benchmarks/data.py --allocator=system`). The process keeps up
    to 2 GiB instead. The user's settings (MALLOC_*, GLIBC_TUNABLES) and other C libraries are left alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl's mallopt does not exist, macOS's malloc has other numbers)
        return all(library.mallopt(option, limit) == 1 for option, limit in _MALLOC_LIMITS.items())
    except (AttributeError, OSError, TypeError):
        return False
