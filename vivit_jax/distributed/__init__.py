"""Runs of several processes: start, synchronized exit, watchdog."""

from vivit_jax.distributed.initialize import DistributedError, initialise
from vivit_jax.distributed.shutdown import Preempted, exit_deadline, is_primary, synchronized_exit
