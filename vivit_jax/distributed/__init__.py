"""Runs of several processes: start, synchronized exit, watchdog."""

from vivit_jax.distributed.initialize import HEARTBEAT_SECONDS, DistributedError, Start, initialise, plan
from vivit_jax.distributed.shutdown import (
    PREEMPTED_EXIT_CODE,
    Preempted,
    exit_deadline,
    is_primary,
    synchronized_exit,
)

__all__ = [
    "HEARTBEAT_SECONDS",
    "PREEMPTED_EXIT_CODE",
    "DistributedError",
    "Preempted",
    "Start",
    "exit_deadline",
    "initialise",
    "is_primary",
    "plan",
    "synchronized_exit",
]
