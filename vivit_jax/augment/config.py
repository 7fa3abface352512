"""What a config says of augmentation on the device, checked."""

from __future__ import annotations

import dataclasses
import math

from vivit_jax.augment.erasing import FILLS
from vivit_jax.augment.rand_augment import OPERATION_SETS


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to the pixels and labels of a training clip besides crops and flips. The defaults turn all off.

    The paper's recipes (its appendix): Kinetics and Moments in Time `colour_jitter_probability=0.8` and
    `grayscale_probability=0.1`; Epic Kitchens two layers of RandAugment at 15 and `mixup=0.1`; Something-Something v2
    two layers at 20 and `mixup=0.3`. The other RandAugment set, erasing and cutmix are not the paper's.

    In this order: RandAugment, colours, erasing, mixup or cutmix. All frames of a clip are treated alike.

    Attributes:
      colour_jitter_probability: in [0, 1], that a clip's brightness, saturation, contrast and hue are changed.
      grayscale_probability: in [0, 1], that a clip becomes grey, independent of the former.
      rand_augment_layers: operations of RandAugment on each clip, at least 0.
      rand_augment_magnitude: their strength, at least 0; `rand_augment.operations` says what it means.
      rand_augment_ops: 'paper', the paper's twelve operations, which move no pixels; 'video', these and rotation,
        shears and translations. For labels that tell left from right or up from down, mind the strength.
      erase_probability: in [0, 1], that boxes of a clip are erased (random erasing, arXiv:1708.04896).
      erase_area: (low, high), the share of the frame that all boxes together take, 0 < low <= high < 1.
      erase_aspect: height over width of a box lies between this and its inverse, in (0, 1]; 1 for squares.
      erase_count: boxes of a clip, at least 1.
      erase_fill: what a box is filled with: 'zero', black; 'mean', the clip's mean colour; 'noise', a random value for
        each pixel and channel, the same in all frames.
      mixup: alpha of Beta(alpha, alpha), from which the share of the other clip is drawn; 0 turns mixup off.
      cutmix: alpha of Beta(alpha, alpha) for the share that a box of the other clip does not cover (arXiv:1905.04899);
        0 turns cutmix off.
      switch_probability: with both of them on, the probability, in [0, 1], that it is cutmix.
      mix_per_example: draw share, box and which of the two for each clip, and not once for a batch, as published.

    Raises:
      ValueError: a field out of its range.
    """

    colour_jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 10.0
    rand_augment_ops: str = "paper"
    erase_probability: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: float = 0.3
    erase_count: int = 1
    erase_fill: str = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    switch_probability: float = 0.5
    mix_per_example: bool = False

    def __post_init__(self) -> None:
        probabilities = ("colour_jitter_probability", "grayscale", "erase_probability", "switch")
        for field in (f"{name}_probability" for name in probabilities):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"augment.{field}={getattr(self, field)} is a probability and must lie in [0, 1]")
        for field in ("rand_augment_layers", "rand_augment_magnitude", "mixup", "cutmix"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"augment.{field}={getattr(self, field)} must be at least 0, and finite")
        for field in ("rand_augment_layers", "erase_count"):
            if getattr(self, field) != int(getattr(self, field)):
                raise ValueError(f"augment.{field}={getattr(self, field)} must be a whole number")
        for field, choices in (("rand_augment_ops", OPERATION_SETS), ("erase_fill", FILLS)):
            if getattr(self, field) not in choices:
                raise ValueError(f"augment.{field}={getattr(self, field)!r}; choose one of {', '.join(choices)}")
        object.__setattr__(self, "erase_area", tuple(self.erase_area))  # a list, where it comes from JSON
        if len(self.erase_area) != 2 or not 0 < self.erase_area[0] <= self.erase_area[1] < 1:
            raise ValueError(f"augment.erase_area={self.erase_area} must be (low, high) with 0 < low <= high < 1")
        if not 0 < self.erase_aspect <= 1:
            raise ValueError(
                f"augment.erase_aspect={self.erase_aspect} must lie in (0, 1]; its inverse is the other end"
            )
        if self.erase_count < 1:
            raise ValueError(
                f"augment.erase_count={self.erase_count} must be at least 1; augment.erase_probability=0 turns it off"
            )

    @property
    def enabled(self) -> bool:
        """Whether anything is on."""
        colours = self.colour_jitter_probability or self.grayscale_probability
        return bool(colours or self.rand_augment_layers or self.erase_probability or self.mixes)

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed."""
        return bool(self.mixup or self.cutmix)
