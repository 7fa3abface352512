"""Messages between the processes of a run, through the service of `jax.distributed`: no devices take part."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax

_TIMEOUT_MS = 24 * 3600 * 1000  # the end of a process ends the others; one that hangs is the watchdog's task
_calls = itertools.count()


def several() -> bool:
    """Returns whether the run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _service() -> Any:
    from jax._src import distributed  # which Orbax uses too

    return distributed.global_state.client


def publish(folder: str, value: str) -> None:
    """Replaces this process's value in a folder ("name/")."""
    _service().key_value_set(f"{folder}{jax.process_index()}", value, allow_overwrite=True)


def published(folder: str) -> list[tuple[int, str]]:
    """Returns the processes that have a value in a folder, each with it, in their order."""
    return sorted((int(key.rpartition("/")[2]), value) for key, value in _service().key_value_dir_get(folder))


def gather(value: str) -> list[str]:
    """Returns the values of all processes, in their order, once each has called it; they call it equally often."""
    if not several():
        return [value]
    folder = f"vivit_jax/gather/{next(_calls)}/"
    publish(folder, value)
    _service().wait_at_barrier(folder, _TIMEOUT_MS)
    return [value for _, value in published(folder)]


@contextlib.contextmanager
def process_0_first() -> Iterator[None]:
    """Process 0 executes the block before the others, which on a shared disk find what it has built there."""
    if several() and jax.process_index() != 0:
        gather("")
    yield
    if several() and jax.process_index() == 0:
        gather("")
