"""Checkpoints of a run: Orbax steps with checksums; verified on restore, damaged ones quarantined."""

from typing import TYPE_CHECKING, Any

from vivit_jax.checkpoint.integrity import CheckpointError, check_params, checksums, order_sensitive_checksums

if TYPE_CHECKING:
    from vivit_jax.checkpoint.manager import (
        FOLDER,
        META,
        OPTIONAL,
        STATE,
        Checkpoints,
        latest_metadata,
        locate,
        lock,
        score,
    )

__all__ = [
    "FOLDER",
    "META",
    "OPTIONAL",
    "STATE",
    "CheckpointError",
    "Checkpoints",
    "check_params",
    "checksums",
    "latest_metadata",
    "locate",
    "lock",
    "order_sensitive_checksums",
    "score",
]


def __getattr__(name: str) -> Any:
    """Imports the manager, and with it Orbax, when one of its names is first used."""
    if name in __all__:
        from vivit_jax.checkpoint import manager

        return getattr(manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
