"""Config of the augmentation on the device."""

import dataclasses

from vivit_jax.utils.checks import one_of, whole, within

OPERATION_SETS = ("paper", "video")  # of RandAugment


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips besides crops and flips (table 4 and the appendix). By default all of it is off.

    The paper's recipes: Kinetics and Moments in Time `colour_jitter_probability=0.8, grayscale_probability=0.1`; Epic
    Kitchens two RandAugment layers at magnitude 15 and `mixup=0.1`; Something-Something v2 two at 20 and `mixup=0.3`.
    The other RandAugment set, erasing and cutmix are not the paper's. Order: RandAugment, colours, erasing, mixing.

    Attributes:
      colour_jitter_probability: in [0, 1], of changing the brightness, saturation, contrast and hue of a clip.
      grayscale_probability: in [0, 1], of making it grey, independently.
      rand_augment_layers, rand_augment_magnitude: operations per clip and their strength, at least 0 (`operations`).
      rand_augment_ops: 'paper', the paper's twelve operations, which move no pixels; 'video' adds rotation, shears and
        translations. For classes that depend on left and right or up and down, choose a small magnitude.
      cutmix: alpha, as of `mixup`, of the share outside the box (arXiv:1905.04899); if both are on, one is drawn.
    """

    colour_jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 10.0
    rand_augment_ops: str = "paper"
    erase_probability: float = 0.0  # in [0, 1], of filling a box with noise (random erasing, arXiv:1708.04896)
    mixup: float = 0.0  # alpha of lambda ~ Beta(alpha, alpha), the weight of a clip in its mixture; 0 turns mixup off
    cutmix: float = 0.0
    mix_per_example: bool = False  # draw lambda, box and choice for each clip instead of once per batch (as published)

    def __post_init__(self) -> None:
        probabilities = ("colour_jitter_probability", "grayscale_probability", "erase_probability")
        within("augment", self, "[0, 1]", *probabilities)
        within("augment", self, "[0, inf)", "rand_augment_layers", "rand_augment_magnitude", "mixup", "cutmix")
        whole("augment", self, "rand_augment_layers")
        one_of("augment", self, rand_augment_ops=OPERATION_SETS)

    @property
    def enabled(self) -> bool:
        """Whether any augmentation is on."""
        colours = self.colour_jitter_probability or self.grayscale_probability
        return bool(colours or self.rand_augment_layers or self.erase_probability or self.mixes)

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return bool(self.mixup or self.cutmix)
