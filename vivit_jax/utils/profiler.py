"""A `jax.profiler` trace of some training steps."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax.utils import storage

PROFILE_FOLDER = "profile"  # inside a run's workdir


class Profiler:
    """A trace of some steps for TensorBoard and XProf (`jax.profiler`), in the workdir's `profile/`.

    Args:
      steps: (first, last) to trace; None: none.
      workdir: of the run.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: epath.PathLike):
        self._steps, self._folder = steps, epath.Path(workdir) / PROFILE_FOLDER
        self._tracing: str | None = None  # the folder that the trace under way goes to

    def step(self, step: int, before: Any) -> Any:
        """Around the dispatch of a step: a context in which the step bears its number in the trace.

        Args:
          step: counted from 1.
          before: what the steps before compute; waited for where the trace begins, so that it holds none of them.
        """
        if self._steps is not None and step == self._steps[0]:
            jax.block_until_ready(before)
            # jaxlib writes to disks alone.
            remote = storage.is_remote(self._folder)
            self._tracing = tempfile.mkdtemp(prefix="vivit_jax-") if remote else str(self._folder)
            jax.profiler.start_trace(self._tracing)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, results: Any) -> None:
        """Ends the trace with its last step, when that is done on the device."""
        if self._tracing and step == self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._tracing:
            written, self._tracing = self._tracing, None
            jax.profiler.stop_trace()
            if storage.is_remote(self._folder):
                storage.put_tree(written, self._folder)
                shutil.rmtree(written)
            logging.info("A profile is in %s; to see it: tensorboard --logdir=%s", self._folder, self._folder.parent)
