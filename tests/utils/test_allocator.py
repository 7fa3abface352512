"""Freed memory stays in the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from vivit_jax.utils.devices import keep_freed_memory

assert len(sys.argv) == 1 or keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(2**26, 1, np.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_later_allocations_fault_no_pages():
    def faults(*arguments):
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 100 < faults()
