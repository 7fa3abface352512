"""Settings of a probe."""

import dataclasses
import math

from vivit_jax.utils.checks import at_least, one_of, within

FEATURES = ("pre_logits", "tokens_mean")
METHODS = ("knn", "linear")
UNSEEN = ("error", "wrong")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How the features are computed, and what is fitted to them.

    Features of a clip are `pre_logits`, the input of the head, or `tokens_mean`, the mean of the last encoder's tokens
    after its LayerNorm, without the class token.
    """

    methods: tuple[str, ...] = METHODS
    features: str = "pre_logits"
    temporal_views: int = 1  # clips evenly spaced over a video; the features of the views are averaged
    spatial_views: int = 1  # 1 (centre), 2 or 3 crops along the longer side
    neighbours: tuple[int, ...] = (10, 20)  # values of k
    temperature: float = 0.07  # a neighbour votes with weight exp(cosine similarity / temperature)
    # Values of C (small: strong regularisation); the best on held-out training videos is chosen.
    inverse_penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    held_out_share: float = 0.2  # of the training videos of each class, in (0, 1)
    max_iterations: int = 1000  # of L-BFGS, for each fit
    unseen_classes: str = "error"  # evaluated classes without a training video; 'wrong' counts their videos as wrong
    seed: int = 0  # of the held-out part

    def __post_init__(self) -> None:
        for field in ("methods", "neighbours", "inverse_penalties"):
            object.__setattr__(self, field, tuple(dict.fromkeys(getattr(self, field))))
            if not getattr(self, field):
                raise ValueError(f"probe.{field} is empty; give at least one")
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"probe.methods: {', '.join(unknown)} is not known; choose from {', '.join(METHODS)}")
        one_of("probe", self, features=FEATURES, unseen_classes=UNSEEN, spatial_views=(1, 2, 3))
        at_least("probe", self, temporal_views=1, max_iterations=1)
        within("probe", self, "(0, inf)", "temperature")
        within("probe", self, "(0, 1)", "held_out_share")
        if min(self.neighbours) < 1:
            raise ValueError(f"probe.neighbours={self.neighbours} must each be at least 1")
        if not all(0 < c < math.inf for c in self.inverse_penalties):
            raise ValueError(f"probe.inverse_penalties={self.inverse_penalties} must each be greater than 0, finite")
