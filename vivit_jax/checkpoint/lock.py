"""Lock of a workdir."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from vivit_jax.checkpoint.integrity import CheckpointError
from vivit_jax.utils import storage


@contextlib.contextmanager
def lock(workdir: storage.PathLike) -> Iterator[None]:
    """Locks a workdir against a second run (Orbax has no lock). The lock ends with the process, however it ends.

    Raises CheckpointError where another process holds it. Cloud paths (gs://) have no file locks and are not locked.
    """
    if jax.process_index() != 0 or storage.is_remote(workdir):
        yield
        return
    path = Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    advice = "wait for it, stop it, or choose another --workdir"
    with storage.locked(path, CheckpointError(f"another run is using {workdir} (it holds {path}); {advice}")):
        yield
