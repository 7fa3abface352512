"""Orbax checkpoints of a run: save, restore, restore parameters alone; verified, with fallback to an older step.

One step on disk holds two items. `state`: parameters, their EMA, optimizer state, step, guard. `meta`, JSON: the
resolved config, heads and class names, identity of the data, metrics, and a checksum of every array, because Orbax
restores flipped bits silently. A damaged step is quarantined, and the step before it is used. A step that cannot be
read because the storage fails is tried again, then the program ends and nothing is moved; all processes agree on it.
"""

import contextlib
import functools
import json
import math
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vivit_jax.checkpoint.folders import FOLDER, META, QUARANTINE_DIR, STATE, absolute, score
from vivit_jax.checkpoint.integrity import (
    CheckpointError,
    OtherModelError,
    UnavailableError,
    check_optimizer,
    check_params,
    checksums,
    digest,
    together,
)
from vivit_jax.utils import storage

DIGEST = "digest"  # of the other fields of `meta`; absent in checkpoints of version 0.2.0 and older
OPTIONAL = ("ema", "guard")  # parts of the state that checkpoints may lack
_RETRY_SECONDS = (1.0, 4.0, 15.0)  # pauses before a storage that fails is read again
# Guard fields of checkpoints of version 0.1.0 -> today's name.
RENAMED_GUARD_FIELDS = {"in_a_row": "consecutive_skips"}

# Orbax cuts each array into a slice for every device that holds a copy. For small arrays that compiles hundreds of
# programs: the first save of a run on eight CPU devices took 9 seconds.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20), override=True
)


def latest_metadata(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the metadata of a run's newest readable checkpoint, or None; writes nothing."""
    root = absolute(workdir) / FOLDER

    def read() -> dict[str, Any] | None:
        if not root.exists():
            return None
        next(root.iterdir(), None)  # raises where it is a file
        with Checkpoints(root, read_only=True) as checkpoints:
            return checkpoints.latest_metadata()

    return together(read, lambda found: f"step {found.get('step')}" if found else "none")


class _Manager(ocp.CheckpointManager):
    """Orbax's manager with the metrics of the item `meta`, to which `Checkpoints.add_metrics` can add them."""

    def metrics(self, step: int) -> dict[str, Any] | None:
        try:
            found = json.loads((self.directory / str(step) / META / "metadata").read_text())["metrics"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            logging.error("%s: the metrics of step %d cannot be read (%s)", self.directory, step, error)
            return None
        return found if found and isinstance(found, dict) else None


class _DiskFullError(CheckpointError):
    """A checkpoint cannot be written."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run; keeps the newest, the best and the newest sound one (`TrainSetup.is_sound`).

    Args:
      root: folder of the steps; created unless `read_only`, which writes and cleans up nothing.
      keep_latest: number of newest steps to keep, at least 1.
      keep_best: number of steps with the best `best_metric` to keep; without it, or with NaN, a step is never best.
      on_full: `stop` or `continue`, see `config.checkpoint.on_full`.
    """

    def __init__(
        self,
        root: epath.PathLike,
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        best_metric: str = "top1",
        on_full: str = "stop",
        read_only: bool = False,
    ):
        self.root, self.best_metric, self._on_full = absolute(root), best_metric, on_full
        policies = ocp.checkpoint_managers
        newest = policies.LatestN(n=keep_latest)
        best = policies.BestN(get_metric_fn=self._score, n=keep_best, keep_checkpoints_without_metrics=False)
        keep_sound = lambda found, *, context: [one.step == self.newest_sound(found) for one in found]  # noqa: E731
        sound = types.SimpleNamespace(should_preserve=keep_sound)
        # `best_fn` with `max_to_keep` would delete the newest step; a preservation policy does not.
        self._options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            best_fn=self._score,
            best_mode="max",
            keep_checkpoints_without_metrics=False,
            cleanup_tmp_directories=not read_only,
            preservation_policy=policies.AnyPreservationPolicy([newest, best, sound]),
        )
        self._unsaved: int | None = None  # a step that found no room
        self._sound: dict[int, bool] = {}
        self._open()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self._manager = _Manager(
                self.root,
                options=self._options,
                item_handlers={STATE: ocp.PyTreeCheckpointHandler(), META: ocp.JsonCheckpointHandler()},
            )
        except ImportError as error:
            problem = f"{self.root}: Orbax lacks what it needs for checkpoints in a bucket ({error})"
            advice = "pip install 'vivit_jax[gcs]', or give a --workdir on a disk"
            raise CheckpointError(f"{problem}; {advice}") from error

    def _score(self, metrics: Mapping[str, Any] | None) -> float:
        return score(metrics, self.best_metric)

    def steps(self) -> list[int]:
        """Returns the steps on disk, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Returns the step with the best `best_metric`; the newest if no step has the metric; None without steps."""
        step = self._manager.best_step()
        if step is not None and self._score(self._manager.metrics(step)) > -math.inf:
            return step
        return self.latest()

    def is_sound(self, step: int) -> bool:
        """Returns whether the losses of a step were sound when it was saved, as far as its files say."""
        if step not in self._sound:
            try:  # as a file: the manager may be at work
                found = json.loads((self.root / str(step) / META / "metadata").read_text())
                losses = [value for name, value in found["metrics"].items() if name.endswith("loss")]
                self._sound[step] = found.get("sound", all(map(math.isfinite, losses)))
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                return False
        return self._sound[step]

    def newest_sound(self, among: Sequence[Any] = ()) -> int | None:
        """Returns the newest sound step, `among` the checkpoints of Orbax or of all, or None."""
        steps = [checkpoint.step for checkpoint in among] or self.steps()
        return next(filter(self.is_sound, reversed(steps)), None)

    def save(
        self, step: int, state: Any, metadata: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Writes one step in the background; the state, a tree of arrays, may be donated at once.

        A step that is already on disk stays as it is. An error of writing the step before it is raised here too. On a
        full disk, it is tried once more, without what was written in part; then CheckpointError, or it is left out.
        `metadata` is JSON-safe; step, metrics and checksums are added. `metrics`: of this evaluation, for `best`. Where
        `metadata["sound"]` is False, older steps are deleted only if a newer one than they is sound.
        """
        if step in self.steps():
            return
        self._sound[step] = metadata.get("sound", True)
        metadata = {**metadata, "step": step, "checksums": checksums(state), "metrics": dict(metrics or {})}
        metadata[DIGEST] = digest(metadata)
        values = {name: float(value) for name, value in metrics.items()} if metrics else None
        self._unsaved = None
        args = ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state), META: ocp.args.JsonSave(metadata)})
        try:
            with self._reopened_on_error():
                self._manager.save(step, args=args, metrics=values)
        except _DiskFullError as error:
            logging.error("%s; trying step %d", error, step)
            try:
                with self._reopened_on_error():
                    self._manager.save(step, args=args, metrics=values)
                    self._manager.wait_until_finished()
            except _DiskFullError as again:
                if self._on_full == "stop" or jax.process_count() > 1:
                    raise
                logging.error("Step %d is not saved: %s", step, again)
                self._unsaved = step

    def add_metrics(self, step: int, metadata: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Adds `metadata` and `metrics`, as for `save`, to a step that was saved before it was evaluated, if it was."""
        try:
            self.wait()
        except _DiskFullError as error:
            if self._on_full == "stop" or jax.process_count() > 1:
                raise
            logging.error("%s", error)
        if step not in self.steps():
            return
        found = {**self.metadata(step), **metadata, "metrics": dict(metrics)}
        self._sound[step] = found.get("sound", True)
        found[DIGEST] = digest(found)

        def write() -> None:
            if jax.process_index() == 0:
                storage.write(self.root / str(step) / META / "metadata", json.dumps(found))

        together(write)
        self._manager.reload()

    @contextlib.contextmanager
    def _reopened_on_error(self) -> Iterator[None]:
        """Opens the folder again after an error: a manager whose save failed cannot be used, nor closed."""
        try:
            yield
        except BaseException as error:
            for pause in (0.5, 2.0, 8.0, None):
                try:
                    self._open()  # removes what was written in part
                    break
                except OSError:  # threads of the failed save are still writing
                    if pause is None:
                        raise
                    time.sleep(pause)
            if isinstance(error, Exception) and storage.is_full(error):
                saved = "none is saved" if (last := self.latest()) is None else f"step {last} is the last one saved"
                problem = f"the disk of {self.root} is full, no checkpoint can be written; {saved}"
                raise _DiskFullError(f"{problem}. Free some space and run the same command") from error
            raise

    def reached_preemption(self, step: int) -> bool:
        """Returns whether all processes should save `step` and stop (SIGTERM to any); only under `jax.distributed`."""
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def latest_metadata(self) -> dict[str, Any] | None:
        """Returns the metadata of the newest step that has a readable one, or None."""
        for step in reversed(self.steps()):
            try:
                return self.metadata(step)
            except (UnavailableError, OtherModelError):
                raise
            except CheckpointError:
                continue
        return None

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the JSON item of a step; verifies that it has checksums, and its own digest."""
        where = self.root / str(step) / META
        # As a file: Orbax's manager would wait for the other processes.
        found = self._attempt(step, f"has no readable {META}", lambda: json.loads((where / "metadata").read_text()))
        if not isinstance(found, dict) or not isinstance(found.get("checksums"), dict):
            raise CheckpointError(f"{where} is without checksums: not as it was saved")
        if DIGEST in found and found[DIGEST] != digest(found):
            raise CheckpointError(f"{where} was altered after writing: its digest is another")
        if found.get("step", step) != step:
            raise OtherModelError(f"{where.parent} holds step {found['step']}, its folder was renamed: undo that")
        return found

    def _attempt(self, step: int, what: str, read: Callable[[], Any]) -> Any:
        """Returns `read()`; CheckpointError where the step is damaged, UnavailableError where the storage fails."""
        for pause in (*_RETRY_SECONDS, None):
            try:
                return read()
            except Exception as error:
                logging.debug("Step %d %s:", step, what, exc_info=True)
                message = f"{self.root / str(step)} {what}: {storage.reason(error)}"
                if not storage.is_outage(error):
                    raise CheckpointError(message) from error
                if pause is None:
                    advice = "Nothing was changed; run the same command when it answers"
                    raise UnavailableError(f"{message}\n{advice}") from error
                logging.warning("%s; trying again in %g s", message, pause)
                time.sleep(pause)

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """Restores (state, metadata) of a given step, or of the newest valid one; returns None where there is no step.

        Each array is verified. Damaged steps are quarantined in `damaged/` beside the folder of steps. Raises
        CheckpointError for a given step that is damaged, another model, storage that fails, and no valid step.

        `abstract` is the whole state as `jax.ShapeDtypeStruct`s with shardings; parts that it lacks are None.
        """
        if step is not None:
            return self._restore(abstract, step)
        failed = []
        for candidate in reversed(together(self.steps, lambda steps: f"steps {steps}")):
            try:
                return self._restore(abstract, candidate)
            except (OtherModelError, UnavailableError):
                raise
            except CheckpointError as error:
                failed.append(f"{candidate}: {error}")
                self._quarantine(candidate, error)
        if failed:
            raise CheckpointError(f"no valid checkpoint in {self.root}:\n  " + "\n  ".join(failed))
        return None

    def _stored(self, step: int) -> Any:
        """Returns the shapes of what a step holds."""
        return self._attempt(step, "has no readable description", lambda: self._manager.item_metadata(step)[STATE].tree)

    def _restore(self, abstract: Any, step: int) -> tuple[Any, dict[str, Any]]:
        metadata, stored = together(lambda: (self.metadata(step), self._stored(step)), lambda _: f"step {step}")
        where = self.root / str(step)
        if "opt_state" not in stored:
            usable = f"it can be evaluated, or start another run with --config.init_from.path={self.root.parent}"
            raise OtherModelError(f"{where} holds parameters alone: {usable}, but training cannot resume from it")
        check_params(abstract.params, stored["params"], str(where))
        check_optimizer(abstract.opt_state, stored["opt_state"], str(where))
        # Parts that the checkpoint lacks (the EMA was off, it is older than the guard) come back as None.
        absent = [name for name in OPTIONAL if getattr(abstract, name, None) is not None and not stored.get(name)]
        target = abstract.replace(**dict.fromkeys(absent))
        # Fields of the guard that were renamed since are read and verified under the old name, new ones are absent.
        renamed = {new: old for old, new in RENAMED_GUARD_FIELDS.items() if old in (stored.get("guard") or {})}
        if target.guard is not None:
            guard = {renamed.get(name, name): leaf for name, leaf in vars(target.guard).items()}
            target = target.replace(guard={name: leaf for name, leaf in guard.items() if name in stored["guard"]})
        state = self._read(step, target, metadata)
        if state.guard is not None:
            guard = {name: state.guard.get(renamed.get(name, name)) for name in vars(abstract.guard)}
            state = state.replace(guard=abstract.guard.replace(**guard))
        return state, metadata

    def restore_params(self, abstract: Any, step: int, tree: str = "params") -> Any:
        """Restores the parameters ('params' or 'ema') of a step, with `abstract`'s dtypes and shardings.

        Raises CheckpointError for a step that is unreadable, damaged, of another model, or without an EMA.
        """
        if tree not in ("params", "ema"):
            raise ValueError(f"tree={tree!r} must be params or ema")
        metadata, stored = together(lambda: (self.metadata(step), self._stored(step)), lambda _: f"step {step}")
        where = self.root / str(step)
        if not stored.get(tree):
            reason = "the run was trained without config.optimizer.ema_decay"
            raise CheckpointError(f"{where} holds no averaged weights: {reason}")
        check_params(abstract, stored[tree], str(where))
        return self._read(step, {tree: abstract}, metadata)[tree]

    def _read(self, step: int, target: Any, metadata: Mapping[str, Any]) -> Any:
        """Reads and verifies the part of a step's state that `target` names, with its dtypes and shardings."""
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
        )
        read = functools.partial(ocp.PyTreeCheckpointHandler().restore, self.root / str(step) / STATE, args=args)
        tree = together(lambda: self._attempt(step, "cannot be read", read), lambda _: "")

        def verify() -> None:
            saved = metadata["checksums"]
            if wrong := [name for name, value in checksums(tree).items() if saved.get(name) != value]:
                names = ", ".join(wrong[:4]) + (", ..." if len(wrong) > 4 else "")
                problem = f"the checksums of {len(wrong)} arrays are not those that were saved ({names})"
                raise CheckpointError(f"{self.root / str(step)}: {problem}; the files were altered after writing")

        together(verify)  # all processes sum up; of a replicated array each has its own copy
        return tree

    def _quarantine(self, step: int, error: Exception) -> None:
        if self._options.read_only:
            return
        target = self.root.parent / QUARANTINE_DIR / f"{self.root.name}-{step}"
        logging.error("Checkpoint %d is damaged and moved to %s; trying the one before. %s", step, target, error)

        def move() -> None:
            if jax.process_index() == 0:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rmtree()
                (self.root / str(step)).rename(target)

        together(move)
        self._manager.reload()

    def quarantined(self) -> list[str]:
        """Returns the names of the steps in `damaged/`."""
        return [name for name in storage.names(self.root.parent / QUARANTINE_DIR) if name.startswith(self.root.name)]

    def wait(self) -> None:
        """Waits until all that was saved is on disk; raises the errors of writing, and of a step that found no room."""
        with self._reopened_on_error():
            self._manager.wait_until_finished()
        if self._unsaved is not None:
            raise _DiskFullError(f"step {self._unsaved} was not saved: the disk of {self.root} was full")

    def close(self) -> None:
        """Waits for the last save, as `wait`, and closes the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()
