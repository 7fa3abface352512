"""Checks of the fields of config dataclasses. Each raises ValueError with the field, its value and what is allowed.

`where` is the section of the config, for the message ("" for none). A field that is None is not checked.
"""

from collections.abc import Collection
from typing import Any


def at_least(where: str, settings: Any, **limits: float) -> None:
    """Checks fields against their smallest value: `at_least("data", self, threads=1)`."""
    for field, limit in limits.items():
        value = getattr(settings, field)
        if value is not None and not value >= limit:
            raise ValueError(f"{_name(where, field)}={value} must be at least {limit}")


def within(where: str, settings: Any, interval: str, *fields: str, hint: str = "") -> None:
    """Checks that fields lie in an interval, e.g. "[0, 1)" or "(0, inf)": a round bracket excludes the end."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    for field in fields:
        value = getattr(settings, field)
        if value is None:
            continue
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{_name(where, field)}={value} must lie in {interval}{hint and '; '}{hint}")


def whole(where: str, settings: Any, *fields: str) -> None:
    """Checks that fields are whole numbers, of any type."""
    for field in fields:
        value = getattr(settings, field)
        if value is not None and value % 1 != 0:
            raise ValueError(f"{_name(where, field)}={value} must be a whole number")


def one_of(where: str, settings: Any, **choices: Collection[Any]) -> None:
    """Checks that the value of each field is one of its choices: `one_of("loss", self, name=("softmax",))`."""
    for field, options in choices.items():
        value = getattr(settings, field)
        if value not in tuple(options):  # a value may not be hashable
            known = ", ".join(str(option) for option in options if option is not None)
            raise ValueError(f"{_name(where, field)}={value!r} is not known; choose one of {known}")


def _name(where: str, field: str) -> str:
    return f"{where}.{field}" if where else field
