"""Augmentation on the device, inside the jitted step: pixels of a clip, and mixtures of clips.

Geometry of the crop (which frames, which part, flips) is the input's business; this room changes the pixels of the crop
and mixes clips. The same draw holds for all frames of a clip. A clip's draws follow from the key of the step and its
place in the global batch, so that a run is the same run on any mesh, and the pixels stay on their devices.

`config` names what there is; `colours`, `erasing` and `mixing` do it, RandAugment is `rand_augment`, and
`draws` holds what is drawn for a clip.
"""

from __future__ import annotations

import jax

from vivit_jax.augment import rand_augment
from vivit_jax.augment.colours import (
    BRIGHTNESS,
    CONTRAST,
    GREY,
    HUE,
    SATURATION,
    adjust_hue,
    adjust_saturation,
    jitter_colours,
    random_colours,
    to_grey,
)
from vivit_jax.augment.config import AugmentConfig
from vivit_jax.augment.draws import clip_keys
from vivit_jax.augment.erasing import erase, erase_boxes
from vivit_jax.augment.mixing import cutmix_box, mix, mix_clips, mixup_weights, swap_pairs

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "GREY",
    "HUE",
    "SATURATION",
    "AugmentConfig",
    "adjust_hue",
    "adjust_saturation",
    "augment_pixels",
    "clip_keys",
    "cutmix_box",
    "erase",
    "erase_boxes",
    "jitter_colours",
    "mix",
    "mix_clips",
    "mixup_weights",
    "step_keys",
    "swap_pairs",
    "to_grey",
]

_STREAM = 1  # folded into the step's key, whose own stream is dropout's
_ERASING = 2  # folded into the key of the pixels; 0 and 1 are RandAugment and colours, by `split`


def step_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of `augment_pixels` and of `mix_clips` in a step whose own key is `key` (`train_step.step_key`)."""
    pixels, mixing = jax.random.split(jax.random.fold_in(key, _STREAM))
    return pixels, mixing


def augment_pixels(key: jax.Array, video: jax.Array, config: AugmentConfig) -> jax.Array:
    """RandAugment, then colour jitter and greyscale, then random erasing, as far as the config has them.

    Args:
      key: of this step.
      video: uint8 [B, T, H, W, 3].
      config: what to do, how often and how strongly.

    Returns:
      [B, T, H, W, 3] in [0, 255]: float32 where there is colour jitter or greyscale, else uint8; `video` itself where
      all is off.
    """
    rand_key, colour_key = jax.random.split(key)
    if config.rand_augment_layers:
        video = rand_augment.rand_augment(
            clip_keys(rand_key, video.shape[0]),
            video,
            layers=config.rand_augment_layers,
            magnitude=config.rand_augment_magnitude,
            ops=config.rand_augment_ops,
        )
    if config.colour_jitter_probability or config.grayscale_probability:
        # vmap and not a loop over clips: the arithmetic is a handful of fused passes, and most clips are jittered.
        jitter, gray = config.colour_jitter_probability, config.grayscale_probability
        video = jax.vmap(lambda k, clip: random_colours(k, clip, jitter, gray))(
            clip_keys(colour_key, video.shape[0]), video
        )
    if config.erase_probability:
        video = erase(
            clip_keys(jax.random.fold_in(key, _ERASING), video.shape[0]),
            video,
            probability=config.erase_probability,
            area=config.erase_area,
            aspect=config.erase_aspect,
            count=config.erase_count,
            fill=config.erase_fill,
        )
    return video
