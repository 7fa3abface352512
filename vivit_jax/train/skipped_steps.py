"""The host's part of the guard: every skipped step is told of with its examples; too many in a row end the run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from vivit_jax import checkpoint as checkpointing
from vivit_jax.data.selection.training_set import TrainingSet
from vivit_jax.utils import storage

FAILED_FOLDER = "failed_step"
SKIPPED_FILE = "skipped_steps.jsonl"
MOST_NAMED = 12  # clips in a line of the log; the file has all


class TooManySkippedSteps(FloatingPointError):
    """So many steps in a row were not usable that the run cannot go on; what it takes to repeat one is on disk."""


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step under way: its number, its metrics on the device, its batch on the host."""

    number: int
    metrics: Mapping[str, Any]
    batch: Mapping[str, Any]


class SkippedSteps:
    """Looks at the flag of every step, one step late, so that the device does not wait for the host.

    After a skipped step it looks at once, until a step is taken again: while steps are skipped nothing changes the
    parameters, so that the state at hand is the one before the step that is told of.

    Args:
      most: of the guard, `max_consecutive`: steps in a row after which the run ends.
      training: for the clips' names.
      workdir: gets `skipped_steps.jsonl`, and in the end `failed_step/`.
      record: the JSON item of the run's checkpoints.
    """

    def __init__(self, most: int, training: TrainingSet, workdir: epath.PathLike, record: Mapping[str, Any]):
        self._most, self._training, self._workdir, self._record = most, training, epath.Path(workdir), record
        self._waiting: _Step | None = None
        self._watchful = True  # until a step is taken: a run may go on from amidst skipped ones

    def add(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, Any], state: Any) -> None:
        """One more step, dispatched.

        Args:
          step: its number, counted from 1.
          metrics: of the step, on the device: `skipped`, `skipped_in_a_row`, `loss`, `gradient_norm`.
          batch: this process's rows, NumPy.
          state: after the step, on the device.

        Raises:
          TooManySkippedSteps: `most` in a row were skipped.
        """
        before, self._waiting = self._waiting, _Step(step, metrics, batch)
        if before is not None:
            self._look(before, state)
        if self._watchful:
            self.flush(state)

    def flush(self, state: Any) -> None:
        """Looks at the newest step, waiting for the device; raises as `add`."""
        last, self._waiting = self._waiting, None
        if last is not None:
            self._look(last, state)

    def _look(self, step: _Step, state: Any) -> None:
        if not float(step.metrics["skipped"]):
            self._watchful = self._most == 1  # the first one ends the run: it must not be noticed a step late
            return
        self._watchful = True
        in_a_row = int(step.metrics["skipped_in_a_row"])
        loss, norm = float(step.metrics["loss"]), float(step.metrics["gradient_norm"])
        places = np.asarray(step.batch["index"])
        if jax.process_count() > 1:
            places = multihost_utils.process_allgather(places, tiled=True)
        places = sorted({int(place) for place in places.ravel() if place >= 0})
        names = [self._training.locate(place) for place in places]
        shown = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if names[MOST_NAMED:] else "")
        logging.warning(
            "Step %d was skipped (%d in a row), parameters and optimizer state are as before: loss %g, gradient norm "
            "%g; clips: %s",
            step.number, in_a_row, loss, norm, shown,
        )  # fmt: skip
        line = {"step": step.number, "in_a_row": in_a_row, "loss": _json(loss), "gradient_norm": _json(norm)}
        line |= {"index": places, "videos": names}
        if jax.process_index() == 0:
            self._workdir.mkdir(parents=True, exist_ok=True)
            with (self._workdir / SKIPPED_FILE).open("a") as file:
                file.write(json.dumps(line) + "\n")
        if in_a_row >= self._most:
            folder = self._leave(step, line, state)
            raise TooManySkippedSteps(
                f"{in_a_row} steps in a row could not be taken, the last of them step {step.number} (loss {loss:g}, "
                f"gradient norm {norm:g}). What repeats it is in {folder}: the state before it, batch, examples and "
                "config. Lower optimizer.learning_rate, warm up for longer, clip (optimizer.clip_norm) or look at the "
                "clips; the same command goes on from the last checkpoint"
            )

    def _leave(self, step: _Step, line: Mapping[str, Any], state: Any) -> epath.Path:
        """Leaves in `failed_step/` what repeats the step; returns the folder."""
        folder = self._workdir / FAILED_FOLDER
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree()  # of another failure
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("vivit_jax.skipped")
        folder.mkdir(parents=True, exist_ok=True)
        # The parameters are those before the step; its number, from which its random key follows, is put back to it.
        before = state.replace(step=state.step - (int(state.step) - step.number + 1))
        with checkpointing.Checkpoints(folder / checkpointing.FOLDER) as checkpoints:
            checkpoints.save(step.number - 1, before, self._record)
        # By way of the disk: archives are not written in one go, as a bucket needs it.
        with storage.written(folder / f"batch_{jax.process_index()}.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **traverse_util.flatten_dict(dict(step.batch), sep="/"))
        if jax.process_index() == 0:
            (folder / "step.json").write_text(json.dumps(dict(line) | {"config": self._record["config"]}, indent=1))
        return folder


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
