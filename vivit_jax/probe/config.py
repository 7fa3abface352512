"""Settings of a probe."""

from __future__ import annotations

import dataclasses
import math
import re

from vivit_jax.utils.checks import one_of

FEATURES = ("pre_logits", "tokens_mean")
METHODS = ("knn", "linear")
UNSEEN = ("error", "wrong")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the features are computed, and what is fitted to them.

    Attributes:
      methods: some of `METHODS`.
      features: of a clip. `pre_logits`: the input of the head. `tokens_mean`: the mean of the last encoder's tokens
        after its LayerNorm, without the class token.
      temporal_views: clips evenly spaced over a video; the features of the views are averaged.
      spatial_views: 1 (centre), 2 or 3 crops along the longer side.
      neighbours: values of k.
      temperature: a neighbour votes with weight exp(cosine similarity / temperature).
      inverse_penalties: values of C of the logistic regression (small: strong regularisation); the best on held-out
        training videos is chosen.
      held_out_share: of the training videos of each class, in (0, 1).
      max_iterations: of L-BFGS, for each fit.
      unseen_classes: evaluated classes without a training video: 'error', or 'wrong' to count their videos as wrong.
      seed: of the held-out part.

    Raises:
      ValueError: an unknown choice, or a number out of range.
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
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"probe: method={method!r} is not known; choose one of {', '.join(METHODS)}")
        one_of("probe", self, features=FEATURES, unseen_classes=UNSEEN)
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
    """Parses '4' or '4x3' into (temporal, spatial) views."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if not match:
        raise ValueError(f"views={text!r} must be CLIPS or CLIPSxCROPS, as 1 or 4x3")
    return int(match[1]), int(match[2] or 1)
