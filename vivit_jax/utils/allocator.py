"""The memory allocator of the C library, under programs that compute on the CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h): blocks of any size come from the heap instead of from the system, the heap
# never shrinks, and all threads share it.
_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> bool:
    """Lets glibc's allocator keep freed memory for later allocations; False where there is another C library.

    By default it returns large blocks to the system. XLA allocates the buffers of each operation on the CPU anew, so
    that every call faults all their pages in again: 100,000 faults and about 15 % of the time of ViViT-B's forward pass
    (benchmarks/allocator.py). The memory of the process stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in _OPTIONS.values())
