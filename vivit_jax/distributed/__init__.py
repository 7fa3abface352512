"""Runs of several processes: start, agreement, synchronized exit, watchdog."""

from vivit_jax.distributed.initialize import DistributedError, initialise
from vivit_jax.distributed.peers import gather, process_0_first
from vivit_jax.distributed.shutdown import Preempted, exit_deadline, synchronized_exit
from vivit_jax.distributed.watchdog import beat, watching
