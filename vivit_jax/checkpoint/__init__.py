"""Checkpoints of a run: Orbax steps with checksums; verified on restore, damaged ones quarantined."""

from vivit_jax.checkpoint.integrity import CheckpointError, OtherModelError, check_against, checksums
from vivit_jax.checkpoint.manager import (
    FOLDER,
    META,
    OPTIONAL,
    STATE,
    Checkpoints,
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
    "OtherModelError",
    "check_against",
    "checksums",
    "locate",
    "lock",
    "score",
]
