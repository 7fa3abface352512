"""The sections of a config that belong to no other room: data, checkpoints, evaluation, profile."""

from __future__ import annotations

import dataclasses
import re

from vivit_jax.utils.checks import at_least


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, besides after each evaluation and at the end.

    Attributes:
      every_steps: a checkpoint after so many steps.
      keep_latest, keep_best: checkpoints that stay.
      best_metric: any of the evaluation's metrics, as `top1`, `action/top1`, `loss` or, with averaged weights,
        `ema/top1`. Higher is better, but for a loss.
    """

    every_steps: int = 1000
    keep_latest: int = 1
    keep_best: int = 1
    best_metric: str = "top1"

    def __post_init__(self) -> None:
        at_least("checkpoint", self, every_steps=1, keep_latest=1, keep_best=0)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The views of multi-view evaluation (section 4.1), and when a run is evaluated.

    Attributes:
      temporal_views: clips evenly spaced over the video, at least 1.
      spatial_views: 1 (centre), 2 or 3 crops along the longer side.
      every_epochs: how often during training; 0: only at the end.
      every_steps: the same in steps; where it is given, it wins.
      num_videos: evaluations during training take so many videos of the split, the same each time; None: all. The last
        evaluation of a run takes all.
      patience: the run ends early after so many evaluations in a row that did not improve `checkpoint.best_metric`; 0:
        never.
      batch_size: videos, each with all its views, in a global batch.
    """

    temporal_views: int = 4
    spatial_views: int = 3
    every_epochs: float = 1.0
    every_steps: int | None = None
    num_videos: int | None = None
    patience: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        at_least("evaluation", self, temporal_views=1, every_epochs=0, every_steps=1, num_videos=1, patience=0)
        at_least("evaluation", self, batch_size=1)
        if self.spatial_views not in (1, 2, 3):
            raise ValueError(f"evaluation.spatial_views={self.spatial_views} must be 1, 2 or 3")
        if self.patience and not self.every_epochs and self.every_steps is None:
            raise ValueError(
                f"evaluation.patience={self.patience} counts evaluations during training, and there are none: set "
                "evaluation.every_epochs or evaluation.every_steps"
            )

    @property
    def views(self) -> int:
        """Views of one video."""
        return self.temporal_views * self.spatial_views

    def interval(self, steps_per_epoch: float) -> int:
        """Steps between two evaluations during training; 0: there are none."""
        if self.every_steps is not None:
            return self.every_steps
        return max(1, round(self.every_epochs * steps_per_epoch)) if self.every_epochs else 0


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """What is traced for TensorBoard's profiler (XProf).

    Attributes:
      steps: 'FIRST:LAST', both counted from 1 and both traced, as '100:105'; '' for none. The trace goes to `profile/`
        in the workdir.
    """

    steps: str = ""

    def __post_init__(self) -> None:
        if self.steps and self.range is None:
            raise ValueError(f"profile.steps={self.steps!r} must be FIRST:LAST with 1 <= FIRST <= LAST, as '100:105'")

    @property
    def range(self) -> tuple[int, int] | None:
        """(first, last) step to trace; None for none."""
        found = re.fullmatch(r"(\d+):(\d+)", self.steps)
        first, last = map(int, found.groups()) if found else (0, 0)
        return (first, last) if 1 <= first <= last else None
