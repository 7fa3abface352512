"""Messages between the processes of a run, through the service of `jax.distributed`: no devices take part."""

import itertools
from typing import Any

import jax

_TIMEOUT_MS = 24 * 3600 * 1000  # the end of a process ends the others; one that hangs is the watchdog's task
_calls = itertools.count()


def several() -> bool:
    """Returns whether the run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def service() -> Any:
    """Returns the client of the service, which has keys with values, and barriers (Orbax uses it too)."""
    from jax._src import distributed

    return distributed.global_state.client


def gather(value: str) -> list[str]:
    """Returns the values of all processes, in their order, once each has called it; they call it equally often."""
    if not several():
        return [value]
    folder = f"vivit_jax/gather/{next(_calls)}/"
    service().key_value_set(f"{folder}{jax.process_index()}", value)
    service().wait_at_barrier(folder, _TIMEOUT_MS)
    values = {int(key.rpartition("/")[2]): value for key, value in service().key_value_dir_get(folder)}
    return [values[process] for process in range(jax.process_count())]
