"""What surrounds a training run: lock, mesh, compilation cache, checkpoints, logs; closed in order, also on errors."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed
from vivit_jax.train import compiled_step
from vivit_jax.train.setup import TrainSetup
from vivit_jax.utils import storage


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Locks a workdir, unless it is in a bucket; CheckpointError where another run has it. Orbax has no lock."""
    if jax.process_index() != 0 or storage.is_remote(workdir):
        yield
        return
    path = epath.Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another run is using {workdir} (it holds {path}); wait for it, stop it, or choose another --workdir"
    with storage.locked(path, checkpointing.CheckpointError(busy)):
        yield


@contextlib.contextmanager
def open_session(setup: TrainSetup, workdir: epath.PathLike) -> Iterator[tuple[Any, contextlib.ExitStack]]:
    """Opens a run's workdir, locked, and devices: (its `Checkpoints`, a stack for what the run opens later).

    What was saved and logged is kept when an exception ends it.
    """
    options = setup.experiment.checkpoint
    with (
        lock(workdir),
        jax.set_mesh(setup.mesh),
        compiled_step.compilation_cache(setup.experiment.compilation_cache, workdir),
        contextlib.ExitStack() as stack,
        distributed.exit_deadline(),  # for what the stack closes after an exception
    ):
        checkpoints = checkpointing.Checkpoints(
            epath.Path(workdir) / checkpointing.FOLDER,
            keep_latest=options.keep_latest,
            keep_best=options.keep_best,
            best_metric=options.best_metric,
            on_full=options.on_full,
        )
        stack.callback(checkpoints.close)
        yield checkpoints, stack
