"""Profile of some training steps."""

import shutil
import tempfile
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax.utils import storage

PROFILE_FOLDER = "profile"  # inside a run's workdir


class Profiler:
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

    def after_step(self, step: int, state: Any) -> None:
        """Stops the trace after its last step, when the devices have computed its `state`."""
        if self._trace_folder and step == self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Stops a running trace."""
        if self._trace_folder:
            written, self._trace_folder = self._trace_folder, None
            jax.profiler.stop_trace()
            if storage.is_remote(self._folder):
                storage.copy(written, self._folder)
                shutil.rmtree(written)
            logging.info("A profile is in %s; to see it: tensorboard --logdir=%s", self._folder, self._folder.parent)
