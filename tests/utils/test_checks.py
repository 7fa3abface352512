"""Checks of config fields."""

import types

import pytest

from vivit_jax.utils.checks import at_least, one_of, whole, within

NAN, INF = float("nan"), float("inf")


def settings(value):
    return types.SimpleNamespace(field=value)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, None), (-0.1, 1, NAN)),
        ("(0, 1]", (0.1, 1), (0, 1.1)),
        ("(0, inf)", (1e-9, 1e9), (0, INF, NAN)),
    ],
)
def test_within(interval, inside, outside):
    for value in inside:
        within("section", settings(value), interval, "field")
    for value in outside:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
            within("section", settings(value), interval, "field", hint="0 is off")
        assert str(error.value) == f"section.field={value} must lie in {interval}; 0 is off"


def test_at_least_whole_and_one_of():
    at_least("section", settings(1), field=1)
    whole("section", settings(2.0), "field")
    one_of("section", settings(None), field=(None, "a"))
    for value in (0, NAN):
        with pytest.raises(ValueError, match=r"section\.field=.* must be at least 1"):
            at_least("section", settings(value), field=1)
    for value in (1.5, INF):
        with pytest.raises(ValueError, match=r"field=.* must be a whole number"):
            whole("", settings(value), "field")
    with pytest.raises(ValueError, match=r"field=\['a'\] is not known; choose one of a, b"):
        one_of("", settings(["a"]), field={"a": 1, "b": 2})
