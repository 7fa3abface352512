"""Orbax checkpoints: save, restore, restore the parameters alone; verified, with a way back.

One step on disk holds two items. `state`: parameters, their average where it is on, optimizer state, step, what the
guard counts. `meta`, JSON: the resolved config, the
position in the data, class names, the metrics, and a checksum of every leaf, because Orbax restores flipped bits in
silence. A step whose checksum is wrong is set aside, loudly, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vivit_jax.checkpoint.integrity import CheckpointError, OtherModelError, check_against, check_optimizer, checksums
from vivit_jax.utils import storage

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "OtherModelError",
    "check_against",
    "checksums",
    "locate",
    "lock",
    "score",
]

FOLDER = "checkpoints"  # inside a run's workdir
SET_ASIDE = "damaged"
STATE, META = "state", "meta"
TREES = ("params", "ema")  # parameters that a step may hold
OPTIONAL = ("ema", "guard")  # of the state; checkpoints may lack them


def score(metrics: Mapping[str, Any] | None, name: str) -> float:
    """How good an evaluation is by one of its metrics, higher is better: a loss has its sign changed.

    Args:
      metrics: of the evaluation; None for none.
      name: in them, as `top1`, `verb/loss` or `ema/top1`.

    Returns:
      -inf where there is no such metric, or it is not a number.
    """
    value = float((metrics or {}).get(name, math.nan))
    if math.isnan(value):
        return -math.inf
    return -value if name.rpartition("/")[2] == "loss" else value


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax finds nothing by a relative path, and says nothing. A URI is absolute; `resolve` would put it into this
    process's folder."""
    return epath.Path(storage.absolute(path))


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """A run's workdir, its `checkpoints` folder or one step in it -> (the folder of steps, the step or None).

    Raises:
      CheckpointError: there is no checkpoint.
    """
    path = _absolute(path)
    for root in (path / FOLDER, path):
        if root.is_dir() and any(child.name.isdigit() for child in root.iterdir()):
            return root, None
    if path.name.isdigit() and (path / STATE).exists():
        return path.parent, int(path.name)
    raise CheckpointError(
        f"no checkpoint at {path}; looked for {path / FOLDER}/STEP and {path}/STEP. "
        "Give the --workdir of a run that has saved one, or --checkpoint=WORKDIR/checkpoints/STEP."
    )


class Checkpoints:
    """The checkpoints of one run: the newest and the best are kept.

    Args:
      root: folder of the steps, made where it is absent.
      keep_latest: how many of the newest steps stay, at least 1.
      keep_best: how many of the best stay; a step without the metric, or with NaN, is never best.
      best_metric: name of the metric, see `score`.
      read_only: nothing is written or cleaned up.
    """

    def __init__(
        self,
        root: epath.PathLike,
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        best_metric: str = "top1",
        read_only: bool = False,
    ):
        self.root, self.best_metric = _absolute(root), best_metric
        policies = ocp.checkpoint_managers
        # `best_fn` with `max_to_keep` would delete the newest step: say what to keep instead.
        self._options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            best_fn=self._score,
            best_mode="max",
            keep_checkpoints_without_metrics=False,
            cleanup_tmp_directories=not read_only,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(n=keep_latest),
                    policies.BestN(get_metric_fn=self._score, n=keep_best, keep_checkpoints_without_metrics=False),
                ]
            ),
        )
        self._open()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self._manager = ocp.CheckpointManager(
                self.root,
                options=self._options,
                item_handlers={STATE: ocp.PyTreeCheckpointHandler(), META: ocp.JsonCheckpointHandler()},
            )
        except ImportError as error:
            raise CheckpointError(
                f"{self.root}: Orbax lacks what it needs for checkpoints in a bucket ({error}); "
                "pip install 'vivit_jax[gcs]', or give a --workdir on a disk"
            ) from error

    def _score(self, metrics: Mapping[str, Any] | None) -> float:
        return score(metrics, self.best_metric)

    def steps(self) -> list[int]:
        """Steps on disk, rising."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best `best_metric`; the newest one where no step has the metric; None without steps."""
        step = self._manager.best_step()
        if step is not None and self._score(self._manager.metrics(step)) > -math.inf:
            return step
        return self.latest()

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Writes one step in the background; the state may be donated to the next step at once.

        Args:
          step: its number. One that is on disk already stays as it is.
          state: tree of arrays.
          meta: JSON-safe; the checksums are added here.
          metrics: of this step's evaluation, for `best`.

        Raises:
          OSError, ValueError: what the write of this step, or of the one before it, ended in (e.g. a full disk).
        """
        if step in self.steps():
            return
        meta = dict(meta) | {"step": int(step), "checksums": checksums(state), "metrics": dict(metrics or {})}
        values = {name: float(value) for name, value in metrics.items()} if metrics else None
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state), META: ocp.args.JsonSave(meta)}),
                metrics=values,
            )
        except BaseException:
            self._open()  # a manager whose save failed is of no more use
            raise

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes are to save `step` and leave, since one was told to; only under `jax.distributed`."""
        return jax.distributed.is_initialized() and self._manager.reached_preemption(step)

    def recorded(self) -> dict[str, Any] | None:
        """The JSON item of the newest step that has a readable one, or None."""
        for step in reversed(self.steps()):
            with contextlib.suppress(CheckpointError):
                return self.meta(step)
        return None

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a step."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{META: ocp.args.JsonRestore()}))[META]
        except Exception as error:
            raise CheckpointError(f"{self.root / str(step)} has no readable {META}: {error}") from error

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The state and meta of a step, each leaf with the dtype and sharding of `abstract`, checksums verified.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with shardings, of the whole state.
          step: None: the newest that is sound. Damaged ones are moved to `damaged/` beside the steps, with an error
            in the log.

        Returns:
          (state, meta), or None where there is no step at all.

        Raises:
          CheckpointError: the step asked for is damaged; none is sound; or it is of another model.
        """
        if step is not None:
            return self._restore(abstract, step)
        failed = []
        for candidate in reversed(self.steps()):
            try:
                return self._restore(abstract, candidate)
            except OtherModelError:
                raise
            except CheckpointError as error:
                failed.append(f"{candidate}: {error}")
                self._set_aside(candidate, error)
        if failed:
            raise CheckpointError(f"no sound checkpoint in {self.root}:\n  " + "\n  ".join(failed))
        return None

    def _stored(self, step: int) -> Any:
        """Shapes of what a step holds; empty where its own description cannot be read."""
        try:
            return self._manager.item_metadata(step)[STATE].tree
        except Exception as error:
            raise CheckpointError(f"{self.root / str(step)} has no readable description: {error}") from error

    def _restore(self, abstract: Any, step: int) -> tuple[Any, dict[str, Any]]:
        meta = self.meta(step)
        where = self.root / str(step)
        stored = self._stored(step)
        if "opt_state" not in stored:
            raise OtherModelError(
                f"{where} holds parameters alone: it can be evaluated, or start another run with "
                f"--config.init_from.path={self.root.parent}, but training cannot go on from it"
            )
        check_against(abstract.params, stored["params"], str(where))
        check_optimizer(abstract.opt_state, stored["opt_state"], str(where))
        # What a checkpoint may lack (an average that was off, a guard that is newer) comes back as None.
        absent = [name for name in OPTIONAL if getattr(abstract, name, None) is not None and not stored.get(name)]
        state = self._read(step, abstract.replace(**dict.fromkeys(absent)) if absent else abstract)
        self._verify(state, meta, where)
        return state, meta

    def restore_params(self, abstract: Any, step: int, tree: str = "params") -> Any:
        """The parameters of a step without the optimizer's state, with `abstract`'s dtypes and shardings; verified.

        Args:
          abstract: parameters as `jax.ShapeDtypeStruct`s with shardings.
          step: on disk.
          tree: 'params', or 'ema' for their average over the steps.

        Raises:
          CheckpointError: unreadable, damaged, of another model, or without an average.
        """
        if tree not in TREES:
            raise ValueError(f"tree={tree!r} must be one of {', '.join(TREES)}")
        meta, where, stored = self.meta(step), self.root / str(step), self._stored(step)
        if not stored.get(tree):
            raise CheckpointError(
                f"{where} holds no averaged weights: the run was trained without config.optimizer.ema_decay"
            )
        check_against(abstract, stored[tree], str(where))
        restored = self._read(step, {tree: abstract})
        self._verify(restored, meta, where)
        return restored[tree]

    def _read(self, step: int, wanted: Any) -> Any:
        """The part of a step's state that `wanted` names, with its dtypes and shardings."""
        args = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        # A manager keeps the handler of its first restore: each reading gets one of its own.
        with ocp.CheckpointManager(
            self.root,
            options=ocp.CheckpointManagerOptions(read_only=True, create=False),
            item_handlers={STATE: ocp.PyTreeCheckpointHandler()},
        ) as manager:
            try:
                return manager.restore(step, args=ocp.args.Composite(**{STATE: args}))[STATE]
            except Exception as error:
                raise CheckpointError(f"{self.root / str(step)} cannot be read: {error}") from error

    @staticmethod
    def _verify(tree: Any, meta: Mapping[str, Any], where: epath.Path) -> None:
        wrong = [name for name, value in checksums(tree).items() if meta["checksums"].get(name) != value]
        if wrong:
            raise CheckpointError(
                f"{where}: the checksums of {len(wrong)} arrays are not those that were saved "
                f"({', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}); the files were altered after writing"
            )

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = self.root.parent / SET_ASIDE / f"{self.root.name}-{step}"
        logging.error("Checkpoint %d is damaged and set aside in %s; trying the one before. %s", step, aside, error)
        if self._options.read_only:
            return
        if jax.process_index() == 0:
            aside.parent.mkdir(parents=True, exist_ok=True)
            if aside.exists():
                aside.rmtree()
            (self.root / str(step)).rename(aside)
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._manager.close()


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Keeps two runs out of one workdir (Orbax has no lock of its own). A lock ends with its process, however it ends.

    Cloud paths (gs://) have no file locks and are left alone.

    Raises:
      CheckpointError: another process holds the folder.
    """
    path = epath.Path(workdir) / ".lock"
    if jax.process_index() != 0 or "://" in str(workdir):
        yield
        return
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"another run is using {workdir} (it holds {path}); wait for it, stop it, or choose another --workdir"
            ) from error
        yield
