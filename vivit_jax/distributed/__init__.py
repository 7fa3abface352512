"""Runs of several processes: start, synchronized exit, watchdog."""

from vivit_jax.distributed.initialize import HEARTBEAT_SECONDS, DistributedError, Start, initialise, plan
from vivit_jax.distributed.shutdown import (
    PREEMPTED_EXIT_CODE,
    Preempted,
    ending_together,
    first,
    limited_unwinding,
)
from vivit_jax.distributed.watchdog import watchdog

__all__ = [
    "HEARTBEAT_SECONDS",
    "PREEMPTED_EXIT_CODE",
    "DistributedError",
    "Preempted",
    "Start",
    "ending_together",
    "first",
    "initialise",
    "limited_unwinding",
    "plan",
    "watchdog",
]
