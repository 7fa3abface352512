"""Checkpoints of a run: Orbax steps with checksums; verified on restore, damaged ones quarantined."""

from vivit_jax.checkpoint.integrity import CheckpointError, check_params, checksums, order_sensitive_checksums
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
