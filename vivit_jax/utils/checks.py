"""Checks of config fields."""

from __future__ import annotations

from typing import Any


def at_least(where: str, settings: Any, **limits: float) -> None:
    """Raises ValueError where a field is below its limit; one that is None is not looked at.

    Args:
      where: the group, for the message.
      settings: has the fields.
      **limits: field -> the least value.
    """
    for field, limit in limits.items():
        value = getattr(settings, field)
        if value is not None and value < limit:
            raise ValueError(f"{where}.{field}={value} must be at least {limit}")
