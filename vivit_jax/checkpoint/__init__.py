"""Checkpoints of a run: Orbax steps with checksums; verified on restore, damaged ones quarantined."""

from typing import Any

from vivit_jax.checkpoint.folders import FOLDER, META, QUARANTINE_DIR, STATE, locate, score
from vivit_jax.checkpoint.integrity import CheckpointError, UnavailableError, check_params, checksums, together

_OF_MANAGER = {"OPTIONAL", "Checkpoints", "latest_metadata"}


def __getattr__(name: str) -> Any:
    """Imports the manager, and with it Orbax, when one of its names is first used."""
    if name in _OF_MANAGER:
        from vivit_jax.checkpoint import manager

        return getattr(manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
