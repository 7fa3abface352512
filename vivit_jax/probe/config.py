"""What can be chosen of a probe."""

from __future__ import annotations

import dataclasses
import math
import re

FEATURES = ("pre_logits", "tokens_mean")
METHODS = ("knn", "linear")
UNSEEN = ("error", "wrong")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the features are made, and what is fitted to them.

    Attributes:
      methods: of `METHODS`, at least one.
      features: what stands for a clip. `pre_logits`: the input of the head. `tokens_mean`: the mean of the last
        encoder's tokens after its LayerNorm, without the class token.
      temporal_views: clips evenly spaced over a video, at least 1; the features of the views are averaged.
      spatial_views: 1 (centre), 2 or 3 crops along the longer side.
      neighbours: k of k-NN, each at least 1.
      temperature: a neighbour's vote is exp(cosine similarity / temperature), greater than 0.
      inverse_penalties: C of the logistic regression, greater than 0 (small: strong regularisation); of several, the
        one that is best on the part of the training videos held out is taken.
      held_out_share: of the training videos of each class, in (0, 1), by which C is chosen.
      max_iterations: of L-BFGS, for each fit.
      unseen_classes: of the evaluated videos, classes that no training video has: 'error' raises an error that lists
        them, 'wrong' counts these videos as wrongly recognised.
      seed: of what is held out.

    Raises:
      ValueError: a choice that does not exist, or a number out of range.
    """

    methods: tuple[str, ...] = METHODS
    features: str = "pre_logits"
    temporal_views: int = 1
    spatial_views: int = 1
    neighbours: tuple[int, ...] = (10, 20)
    temperature: float = 0.07
    inverse_penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    held_out_share: float = 0.2
    max_iterations: int = 1000
    unseen_classes: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("methods", "neighbours", "inverse_penalties"):
            object.__setattr__(self, field, tuple(dict.fromkeys(getattr(self, field))))
            if not getattr(self, field):
                raise ValueError(f"probe: {field} is empty; give at least one")
        choices = [(method, "method", METHODS) for method in self.methods]
        choices += [(self.features, "features", FEATURES), (self.unseen_classes, "unseen_classes", UNSEEN)]
        for value, name, known in choices:
            if value not in known:
                raise ValueError(f"probe: {name}={value!r} is not known; choose one of {', '.join(known)}")
        if self.temporal_views < 1 or self.spatial_views not in (1, 2, 3):
            raise ValueError(
                f"probe: views={self.temporal_views}x{self.spatial_views}: at least 1 clip, and 1, 2 or 3 crops of each"
            )
        if min(self.neighbours) < 1 or self.max_iterations < 1:
            raise ValueError(
                f"probe: neighbours={self.neighbours}, max_iterations={self.max_iterations}: each must be at least 1"
            )
        for name, value in [("temperature", self.temperature), *(("c", c) for c in self.inverse_penalties)]:
            if not 0 < value < math.inf:
                raise ValueError(f"probe: {name}={value} must be a number greater than 0")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"probe: held_out_share={self.held_out_share} must lie in (0, 1)")


def parse_views(text: str) -> tuple[int, int]:
    """'4' or '4x3' -> (temporal, spatial) views.

    Raises:
      ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not found:
        raise ValueError(f"views={text!r} must be CLIPS or CLIPSxCROPS, as 1 or 4x3")
    return int(found[1]), int(found[2] or 1)
