"""Sections of a config for checkpoints, evaluation and the profiler."""

import dataclasses
import re

from vivit_jax.utils.checks import at_least, one_of

EVALUATION_DTYPES = ("auto", "float32", "bfloat16", "model")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved and which are kept. They are also saved after each evaluation and at the end.

    Attributes:
      every_steps: steps between checkpoints.
      keep_latest, keep_best: number of checkpoints to keep.
      best_metric: a metric of the evaluation: `top1`, `action/top1`, `loss`, ..., or with EMA `ema/top1`, .... Higher
        is better, except for losses.
      on_full: what to do when the disk is full: `stop`, or `continue`, and save again when the next checkpoint is due.
        Several processes always stop.
    """

    every_steps: int = 1000
    keep_latest: int = 1
    keep_best: int = 1
    best_metric: str = "top1"
    on_full: str = "stop"

    def __post_init__(self) -> None:
        one_of("checkpoint", self, on_full=("stop", "continue"))
        at_least("checkpoint", self, every_steps=1, keep_latest=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The views of multi-view evaluation (section 4.1), and when a run is evaluated.

    Attributes:
      num_videos: videos of the split that evaluations during training use, always the same ones; None: all. The last
        evaluation of a run uses all.
      patience: early stopping after so many consecutive evaluations without a better `checkpoint.best_metric`; 0: off.
      dtype: of the compute in evaluation, during training too, in prediction and in probes: `auto` (bfloat16 where the
        device computes this model clearly faster in it, which is measured; else float32), `float32`, `bfloat16`, or
        `model`, which is `model.dtype`. See docs/performance.md, "Inference dtype".
    """

    temporal_views: int = 4  # clips evenly spaced over the video, at least 1
    spatial_views: int = 3  # 1 (centre), 2 or 3 crops along the longer side
    every_epochs: float = 1.0  # epochs between evaluations; 0: only at the end
    every_steps: int | None = None  # steps between evaluations; replaces `every_epochs`
    num_videos: int | None = None
    patience: int = 0
    batch_size: int = 16  # videos, each with all its views, in a global batch
    dtype: str = "auto"

    def __post_init__(self) -> None:
        at_least("evaluation", self, temporal_views=1, every_epochs=0, every_steps=1, num_videos=1, patience=0)
        at_least("evaluation", self, batch_size=1)
        one_of("evaluation", self, spatial_views=(1, 2, 3), dtype=EVALUATION_DTYPES)
        if self.patience and not self.every_epochs and self.every_steps is None:
            needed = "evaluations during training: set evaluation.every_epochs or evaluation.every_steps"
            raise ValueError(f"evaluation.patience={self.patience} needs {needed}")

    @property
    def views(self) -> int:
        """Number of views of a video."""
        return self.temporal_views * self.spatial_views

    def interval(self, steps_per_epoch: float) -> int:
        """Returns the steps between evaluations during training; 0: none."""
        if self.every_steps is not None:
            return self.every_steps
        return max(1, round(self.every_epochs * steps_per_epoch)) if self.every_epochs else 0


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps traced for TensorBoard's profiler (XProf); the trace is in `profile/` of the workdir."""

    steps: str = ""  # 'FIRST:LAST', counted from 1, both included; '' for none

    def __post_init__(self) -> None:
        if self.steps and self.range is None:
            raise ValueError(f"profile.steps={self.steps!r} must be FIRST:LAST with 1 <= FIRST <= LAST, e.g. '100:105'")

    @property
    def range(self) -> tuple[int, int] | None:
        """(first, last) step to trace, or None."""
        match = re.fullmatch(r"(\d+):(\d+)", self.steps)
        first, last = map(int, match.groups()) if match else (0, 0)
        return (first, last) if 1 <= first <= last else None
