"""Names and sizes of TPU slices."""

import pytest

from vivit_jax.compile import slices


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [
        ("v3:4x4", 32, "v3-32"),
        ("v4-8", 4, "v4-8"),
        ("v5e-16", 16, "v5e-16"),
        ("v5litepod-16", 16, "v5e-16"),
        ("2xv5litepod:4x4", 32, "2xv5e-16"),
        ("v5p:2x2x2", 8, "v5p-16"),
        ("2xv5e-16", 32, "2xv5e-16"),
        ("3xv5p:2x2x2", 24, "3xv5p-16"),
        ("1xv3-8", 8, "v3-8"),
    ],
)
def test_parse_gives_devices_and_name(text, devices, name):
    assert slices.parse(text).num_devices == devices
    assert slices.parse(text).name == name


def test_listed_slices_keep_their_names():
    assert [slices.parse(name).name for name in slices.SLICES] == list(slices.SLICES)


@pytest.mark.parametrize("text", ["v3-33", "h100", "v9:2x2", "v3:4", "0xv3-8", "2xh100"])
def test_unknown_slices_are_rejected_with_the_known_ones(text):
    with pytest.raises(ValueError, match=r"known are .*v3-32"):
        slices.parse(text)
