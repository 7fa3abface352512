"""The search for the largest batch, slices, and the compiler's message; without a compiler."""

import pytest

from vivit_jax.compile import slices
from vivit_jax.compile.ahead import Compiled, memory_asked_for
from vivit_jax.compile.search import largest_batch

GIB = slices.GIB


@pytest.mark.parametrize("start", [1, 2, 16, 300])
@pytest.mark.parametrize(("base", "each"), [(3.0, 1.3), (3.0, 0.11), (15.9, 1.0), (15.0, 1.0), (40.0, 1.0), (1.0, 0.0)])
def test_the_search_finds_the_last_batch_that_fits_in_few_compilations(start, base, each):
    def compile_with(clips):
        needs = base + each * clips + 0.05 * (clips % 3)  # nearly a straight line
        # What does not fit is told as XLA tells it: of temporaries alone.
        return Compiled(needs <= 16.0, round(needs * GIB)) if needs <= 16 else Compiled(False, round(0.5 * needs * GIB))

    expected = max((n for n in range(257) if n and compile_with(n).fits), default=0)
    clips, tried = largest_batch(compile_with, 16 * GIB, start, at_most=256)
    assert clips == expected
    assert clips == 0 or tried[clips].fits
    assert clips == 256 or not tried[clips + 1].fits
    assert len(tried) <= 12


@pytest.mark.parametrize(
    ("message", "bytes_"),
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
def test_the_memory_that_was_asked_for_is_read_off_the_compilers_message(message, bytes_):
    assert memory_asked_for(message) == tuple(round(x * GIB) for x in bytes_)


def test_a_message_without_numbers_gives_none():
    assert memory_asked_for("RESOURCE_EXHAUSTED") == (0, None)


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [
        ("v3:4x4", 32, "v3-32"),
        ("v4-8", 4, "v4-8"),
        ("v5e-16", 16, "v5e-16"),
        ("v5p:2x2x2", 8, "v5p-16"),
        ("2xv5e-16", 32, "2xv5e-16"),
        ("3xv5p:2x2x2", 24, "3xv5p-16"),
        ("1xv3-8", 8, "v3-8"),
    ],
)
def test_a_slice_has_the_devices_that_jax_sees_on_it(text, devices, name):
    assert slices.parse(text).num_devices == devices
    assert slices.parse(text).name == name


def test_every_slice_is_called_by_what_it_has():
    assert [slices.parse(name).name for name in slices.SLICES] == list(slices.SLICES)


@pytest.mark.parametrize("text", ["v3-33", "h100", "v9:2x2", "v3:4", "0xv3-8", "2xh100"])
def test_a_slice_that_does_not_exist_is_refused_with_those_that_do(text):
    with pytest.raises(slices.SliceError, match=r"known are .*v3-32"):
        slices.parse(text)
