"""The search for the largest batch and the compiler's out-of-memory message, without a compiler for TPUs."""

import pytest

from vivit_jax.compile.program import Compiled, largest_batch, parse_out_of_memory
from vivit_jax.compile.slices import GIB


@pytest.mark.parametrize("start", [1, 2, 16, 300])
@pytest.mark.parametrize(("base", "each"), [(3.0, 1.3), (3.0, 0.11), (15.9, 1.0), (15.0, 1.0), (40.0, 1.0), (1.0, 0.0)])
def test_largest_batch_is_found_in_few_compilations(start, base, each):
    tried = {}

    def compile_with(clips):
        required = base + each * clips + 0.05 * (clips % 3)  # nearly a straight line
        tried[clips] = Compiled(required <= 16, round(required * GIB))
        return tried[clips]

    expected = max((n for n in range(257) if n and compile_with(n).fits), default=0)
    tried.clear()
    clips = largest_batch(compile_with, start, at_most=256)
    assert clips == expected
    assert clips == 0 or tried[clips].fits
    assert clips == 256 or not tried[clips + 1].fits
    assert len(tried) <= 16


@pytest.mark.parametrize(
    ("message", "gibibytes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (174.74G) "
            "exceeds available HBM (15.48G).",
            (174.74, 15.48),
        ),
        ("Ran out of memory in memory space hbm. Used 44.28G of 15.75G hbm. Exceeded by 28.53G.", (44.28, 15.75)),
        ("44.28G exceeds available HBM 15.75G", (44.28, 15.75)),
    ],
)
def test_out_of_memory_message_is_parsed(message, gibibytes):
    assert parse_out_of_memory(message) == tuple(round(x * GIB) for x in gibibytes)


def test_out_of_memory_message_without_sizes():
    assert parse_out_of_memory("RESOURCE_EXHAUSTED") == (0, None)
