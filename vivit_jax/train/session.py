"""What surrounds a training run: lock, mesh, compilation cache, checkpoints, logs; closed in order, also on errors."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed
from vivit_jax.train import compiled_step
from vivit_jax.train.setup import TrainSetup
from vivit_jax.utils import logs, storage

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Session:
    """The open resources of a run; `stack` closes them, last in first out."""

    workdir: epath.PathLike
    checkpoints: Any  # checkpoint.Checkpoints; naming it would import Orbax
    stack: contextlib.ExitStack

    @functools.cached_property
    def writer(self) -> Any:
        """The `MetricWriter` of clu, opened when first used: it imports TensorFlow."""
        return self.closing(logs.make_writer(self.workdir))

    def closing(self, resource: T) -> T:
        """Registers a resource whose `close` the end of the session calls; returns it."""
        self.stack.callback(resource.close)
        return resource

    def enter(self, context: Any) -> Any:
        """Enters a context that ends with the session; returns its value."""
        return self.stack.enter_context(context)


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
def open_session(setup: TrainSetup, workdir: epath.PathLike) -> Iterator[Session]:
    """Opens a run's workdir, locked, and devices. What was saved and logged is kept when an exception ends it."""
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
        yield Session(workdir, checkpoints, stack)
