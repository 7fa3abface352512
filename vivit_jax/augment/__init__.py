"""Augmentation on the device, inside the jitted train step: pixels of a clip, and mixtures of clips.

The input pipeline chooses frames, crops and flips; this package changes the pixels of the crop and mixes clips. All
frames of a clip get the same random draw. The draws of a clip depend only on the step's key and the clip's index in the
global batch: a run is the same on any mesh, and pixels stay on their devices.
"""

import jax

from vivit_jax.augment import rand_augment
from vivit_jax.augment.config import AugmentConfig
from vivit_jax.augment.pixels import clip_keys, erase, mix, mix_clips, random_colours, resize_windows, swap_pairs

_STREAM = 1  # folded into the step's key; the key itself is for dropout
_ERASING = 2  # folded into the key of the pixels, which is also split for RandAugment and colours


def step_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of `augment_pixels` and `mix_clips` from the key of a step (`train_step.step_key`)."""
    return tuple(jax.random.split(jax.random.fold_in(key, _STREAM)))


def augment_pixels(key: jax.Array, video: jax.Array, config: AugmentConfig) -> jax.Array:
    """Applies RandAugment, then colour jitter and greyscale, then random erasing, each if the config enables it.

    `video` is uint8 [B, T, H, W, 3]. The result lies in [0, 255] too; with colour jitter or greyscale it is float32.
    """
    batch_size = len(video)
    rand_key, colour_key = jax.random.split(key)
    if layers := config.rand_augment_layers:
        strength = {"magnitude": config.rand_augment_magnitude, "ops": config.rand_augment_ops}
        video = rand_augment.rand_augment(clip_keys(rand_key, batch_size), video, layers=layers, **strength)
    jitter, grey = config.colour_jitter_probability, config.grayscale_probability
    if jitter or grey:
        # vmap instead of a loop over clips: the arithmetic is a few fused passes, and most clips are jittered.
        colours = jax.vmap(lambda key, clip: random_colours(key, clip, jitter, grey))
        video = colours(clip_keys(colour_key, batch_size), video)
    if config.erase_probability:
        keys = clip_keys(jax.random.fold_in(key, _ERASING), batch_size)
        video = erase(keys, video, probability=config.erase_probability)
    return video
