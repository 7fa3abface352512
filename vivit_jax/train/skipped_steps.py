"""Host-side handling of skipped steps: log and record them, end the run after too many in a row."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed
from vivit_jax.data.selection.training_set import TrainingSet
from vivit_jax.utils import storage
from vivit_jax.utils.trees import finite_or_none

FAILED_FOLDER, STEP_FILE = "failed_step", "step.json"
SKIPPED_FILE = "skipped_steps.jsonl"
_JUDGED = ("loss", "gradient_norm", "update_norm", "parameter_norm")
MAX_LOGGED_CLIPS = 12  # in a line of the log; the file has all


class TooManySkippedSteps(FloatingPointError):
    """Too many steps in a row were skipped to continue; `failed_step/` holds what repeats the last one."""


class SkippedSteps:
    """Checks the `skipped` flag of every step, one step late, so that the devices do not wait for the host.

    After a skipped step it checks at once, until a step is taken again: skipped steps leave the parameters unchanged,
    so the current state is the one before the step that is reported. Raises TooManySkippedSteps after `max_consecutive`
    in a row. The workdir gets `skipped_steps.jsonl` and, at the end, `failed_step/`.

    `loss`, of the newest step, is known after `flush`; NaN while `skipping`, where the last checked step was skipped.
    """

    skipping, loss = False, math.nan

    def __init__(
        self, max_consecutive: int, train_set: TrainingSet, workdir: epath.PathLike, metadata: Mapping[str, Any]
    ):
        self._max_consecutive, self._train_set = max_consecutive, train_set
        self._workdir, self._metadata = epath.Path(workdir), metadata
        # (step, metrics, which the devices may still compute, batch on the host)
        self._unchecked: tuple[int, Mapping[str, Any], Mapping[str, Any]] | None = None
        self._check_immediately = True  # the restored run may be inside a streak of skipped steps

    def after_step(self, step: int, state: Any, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Checks the step before, or this one too after a skipped step."""
        previous, self._unchecked = self._unchecked, (step, metrics, batch)
        if previous is not None:
            self._check(*previous, state)
        if self._check_immediately:
            self.flush(state)

    def flush(self, state: Any) -> None:
        """Checks the newest step, waiting for the devices."""
        newest, self._unchecked = self._unchecked, None
        if newest is not None:
            self._check(*newest, state)
            self.loss = math.nan if self.skipping else float(newest[1]["loss"])

    def _check(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, Any], state: Any) -> None:
        self.skipping = bool(float(metrics["skipped"]))
        if not self.skipping:
            # Where one skipped step ends the run, it must not be noticed a step late.
            self._check_immediately = self._max_consecutive == 1
            return
        self._check_immediately = True
        line = self._report(step, metrics, batch)
        if line["in_a_row"] >= self._max_consecutive:
            folder = self._save_failed_step(step, batch, line, state)
            raise TooManySkippedSteps(
                f"{line['in_a_row']} steps in a row were skipped, the last of them step {step} "
                f"({numbers(metrics)}). What repeats it is in {folder}: the state before it, batch, examples and "
                f"config; python -m vivit_jax.main --replay={folder} shows which clip and layer went wrong first. "
                "Lower optimizer.learning_rate, warm up for longer, or clip (optimizer.clip_norm); the "
                "same command resumes from the last checkpoint"
            )

    def _report(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Logs a skipped step and appends it to `skipped_steps.jsonl`; returns the line as a dict."""
        consecutive = int(metrics["skipped_in_a_row"])
        of_processes = map(json.loads, distributed.gather(json.dumps(np.asarray(batch["index"]).tolist())))
        indices = sorted({index for rows in of_processes for index in rows if index >= 0})
        names = [self._train_set.locate(index) for index in indices]
        omitted = len(names) - MAX_LOGGED_CLIPS
        logging.warning(
            "Step %d was skipped (%d in a row), parameters and optimizer state are unchanged: %s; clips: %s",
            step, consecutive, numbers(metrics),
            ", ".join(names[:MAX_LOGGED_CLIPS]) + (f" and {omitted} more" if omitted > 0 else ""),
        )  # fmt: skip
        line = {"step": step, "in_a_row": consecutive, "index": indices, "videos": names}
        line |= finite_or_none({name: float(metrics[name]) for name in _JUDGED if name in metrics})
        if jax.process_index() == 0:
            self._workdir.mkdir(parents=True, exist_ok=True)
            with storage.optional(SKIPPED_FILE), (self._workdir / SKIPPED_FILE).open("a") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def _save_failed_step(self, step: int, batch: Mapping[str, Any], line: Mapping[str, Any], state: Any) -> epath.Path:
        """Writes to `failed_step/` what repeats the step; returns the folder."""
        folder = self._workdir / FAILED_FOLDER
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree()  # of an earlier failure
        distributed.gather("")  # all wait until the folder is empty
        folder.mkdir(parents=True, exist_ok=True)
        # The parameters are those before the step. Its random key follows from the step number: set that back too.
        state_before = state.replace(step=state.step - (int(state.step) - step + 1))
        with checkpointing.Checkpoints(folder / checkpointing.FOLDER) as checkpoints:
            checkpoints.save(step - 1, state_before, self._metadata)
        # Through a local file: np.savez seeks, which files in a bucket do not allow.
        with storage.written(folder / f"batch_{jax.process_index()}.npz") as partial, open(partial, "wb") as file:
            np.savez(file, **traverse_util.flatten_dict(dict(batch), sep="/"))
        if jax.process_index() == 0:
            (folder / STEP_FILE).write_text(json.dumps(dict(line) | {"config": self._metadata["config"]}, indent=1))
        return folder


def numbers(metrics: Mapping[str, Any]) -> str:
    """Returns what the guard judged as text; the norm of the parameters is that after the step."""
    return ", ".join(f"{name.replace('_', ' ')} {float(metrics[name]):g}" for name in _JUDGED if name in metrics)
