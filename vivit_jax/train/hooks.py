"""The hooks of the train loop, what a run does around its steps besides training: their protocol, and the profiler."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax.utils import storage

PROFILE_FOLDER = "profile"  # inside a run's workdir


class Hook:
    """Base of the hooks; its methods do nothing. `step` counts from 1, `state` and `metrics` are on the devices."""

    def waited(self, step: int, seconds: float) -> None:
        """Called when the loop has the batch of a step: the step before is dispatched, but its hooks are not called."""

    def before_step(self, step: int, state: Any) -> None:
        """Called with the state before the step."""

    def after_step(self, step: int, state: Any, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Called when the step is dispatched. `batch` holds this process's rows as NumPy arrays."""

    def flush(self, step: int, state: Any) -> None:
        """Called before evaluation and saving: does what was deferred, and may wait for the devices."""

    def paused(self, seconds: float) -> None:
        """Called after evaluation and saving, which took so many seconds."""

    def close(self, failed: bool) -> None:
        """Called once, after the last step or, with `failed`, after an exception."""


class Hooks(Hook, contextlib.AbstractContextManager):
    """Calls the methods of several hooks, in their order; a context manager that closes them."""

    def __init__(self, hooks: Sequence[Hook]):
        self.hooks = tuple(hooks)

    def _call(self, method: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, method)(*args)

    waited = functools.partialmethod(_call, "waited")
    before_step = functools.partialmethod(_call, "before_step")
    after_step = functools.partialmethod(_call, "after_step")
    flush = functools.partialmethod(_call, "flush")
    paused = functools.partialmethod(_call, "paused")

    def close(self, failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # closes the others when one fails
            for hook in reversed(self.hooks):
                stack.callback(hook.close, failed)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(failed=kind is not None)


class Profiler(Hook):
    """Traces the steps (first, last), both included, for TensorBoard and XProf into the workdir's `profile/`.

    `clu.periodic_actions.Profile` does not wait for the devices (it traces other steps), nor write to a bucket.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: epath.PathLike):
        self._first, self._last = steps or (0, 0)
        self._folder = epath.Path(workdir) / PROFILE_FOLDER
        self._trace_folder: str | None = None  # while a trace is running

    def before_step(self, step: int, state: Any) -> None:
        """Starts the trace before its first step, when the devices have computed the `state` before it."""
        if step == self._first:
            jax.block_until_ready(state)
            # jaxlib writes to local disks only.
            remote = storage.is_remote(self._folder)
            self._trace_folder = tempfile.mkdtemp(prefix="vivit_jax-") if remote else str(self._folder)
            jax.profiler.start_trace(self._trace_folder)

    def after_step(self, step: int, state: Any, *_: Any) -> None:
        """Stops the trace after its last step, when the devices have computed its `state`."""
        if self._trace_folder and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self, failed: bool = False) -> None:
        """Stops a running trace."""
        if self._trace_folder:
            written, self._trace_folder = self._trace_folder, None
            jax.profiler.stop_trace()
            if storage.is_remote(self._folder):
                storage.copy(written, self._folder)
                shutil.rmtree(written)
            logging.info("A profile is in %s; to see it: tensorboard --logdir=%s", self._folder, self._folder.parent)
