"""What `auto` may become on each platform, and that explicit values stay."""

import pytest

from tests.helpers.small_models import small_config
from vivit_jax.train_step import remat

LOOP = [(True, "none"), (True, "dots"), (True, "full")]
UNROLLED = [(False, "none"), (False, "dots"), (False, "full")]


@pytest.mark.parametrize(
    ("platform", "fields", "expected"),
    [
        ("gpu", {}, [*UNROLLED, (True, "full")]),
        ("tpu", {}, LOOP),
        ("cpu", {}, [(False, "none"), (True, "dots"), (True, "full")]),
        ("rocm", {}, [*UNROLLED, (True, "full")]),
        ("gpu", {"scan_layers": True}, LOOP),
        ("tpu", {"scan_layers": False}, UNROLLED),
        ("gpu", {"remat": "dots"}, [(False, "dots"), (True, "dots")]),
        ("tpu", {"remat": "dots"}, [(True, "dots")]),
        ("cpu", {"remat": "none"}, [(False, "none"), (True, "none")]),
        ("gpu", {"remat": "full", "scan_layers": False}, [(False, "full")]),
    ],
)
def test_choices_are_fastest_first_and_keep_explicit_values(platform, fields, expected):
    assert list(remat.choices(small_config(**fields), platform)) == expected
