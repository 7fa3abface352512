"""Photometric augmentation and mixup, on the device, inside the jitted step.

Geometry (which frames, which crop, flips) is the input's business; this room changes the colours of a clip and mixes
clips. The same draw holds for all frames of a clip. A clip's draws follow from the key of the step and its place in
the global batch, so that a run is the same run on any mesh, and the pixels stay on their devices.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from vivit_jax.rand_augment import rand_augment

# Ranges of the published colour jitter, for pixels in [0, 1].
BRIGHTNESS = 32 / 255  # added, at most
SATURATION = CONTRAST = (0.6, 1.4)  # multiplied
HUE = 0.2  # turns of the colour circle, at most

# Weights of red, green and blue in a grey value, as tf.image.rgb_to_grayscale has them (ITU-R BT.601).
GREY = (0.2989, 0.5870, 0.1140)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to the pixels and labels of a training clip besides crops and flips. The defaults turn all off.

    The paper's recipes (its appendix): Kinetics and Moments in Time `colour_jitter=0.8, greyscale=0.1`; Epic Kitchens
    two layers of RandAugment at 15 and `mixup=0.1`; Something-Something v2 two layers at 20 and `mixup=0.3`.

    Attributes:
      colour_jitter: probability, in [0, 1], that a clip's brightness, saturation, contrast and hue are changed.
      greyscale: probability, in [0, 1], that a clip becomes grey, independent of the former.
      rand_augment_layers: operations of RandAugment on each clip, at least 0.
      rand_augment_magnitude: their strength, at least 0; `rand_augment.operations` says what it means.
      mixup: alpha of Beta(alpha, alpha), from which the share of the other clip is drawn; 0 turns mixup off.

    Raises:
      ValueError: a field out of its range.
    """

    colour_jitter: float = 0.0
    greyscale: float = 0.0
    rand_augment_layers: int = 0
    rand_augment_magnitude: float = 10.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for field in ("colour_jitter", "greyscale"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"augment.{field}={getattr(self, field)} is a probability and must lie in [0, 1]")
        for field in ("rand_augment_layers", "rand_augment_magnitude", "mixup"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"augment.{field}={getattr(self, field)} must be at least 0, and finite")
        if self.rand_augment_layers != int(self.rand_augment_layers):
            raise ValueError(f"augment.rand_augment_layers={self.rand_augment_layers} must be a whole number")

    @property
    def enabled(self) -> bool:
        """Whether anything is on."""
        return bool(self.colour_jitter or self.greyscale or self.rand_augment_layers or self.mixup)


def augment_pixels(key: jax.Array, video: jax.Array, config: AugmentConfig) -> jax.Array:
    """RandAugment, then colour jitter and greyscale, as far as the config has them.

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
        video = rand_augment(
            clip_keys(rand_key, video.shape[0]),
            video,
            layers=config.rand_augment_layers,
            magnitude=config.rand_augment_magnitude,
        )
    if config.colour_jitter or config.greyscale:
        # vmap and not a loop over clips: the arithmetic is a handful of fused passes, and most clips are jittered.
        video = jax.vmap(lambda k, clip: _random_colours(k, clip, config))(clip_keys(colour_key, video.shape[0]), video)
    return video


def clip_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key for each place in the global batch, [B], whatever the mesh and the batch size."""
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch_size))


def _random_colours(key: jax.Array, clip: jax.Array, config: AugmentConfig) -> jax.Array:
    """Colour jitter and greyscale, each with its probability, on one clip: [T, H, W, 3] in [0, 255] to float32."""
    jitter, grey, *draws = jax.random.uniform(key, (6,))
    frames = clip.astype(jnp.float32)
    if config.colour_jitter:
        brightness, saturation, contrast, hue = draws
        jittered = jitter_colours(
            frames / 255.0,
            brightness=BRIGHTNESS * (2 * brightness - 1),
            saturation=SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation,
            contrast=CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast,
            hue=HUE * (2 * hue - 1),
        )
        frames = jnp.where(jitter < config.colour_jitter, 255.0 * jittered, frames)
    if config.greyscale:
        frames = jnp.where(grey < config.greyscale, to_grey(frames), frames)
    return frames


def jitter_colours(
    frames: jax.Array, *, brightness: jax.Array, saturation: jax.Array, contrast: jax.Array, hue: jax.Array
) -> jax.Array:
    """The published colour jitter at given strengths, in the published order: brightness, saturation, contrast, hue.

    `color_default_augm` of DeepMind's Video Reader (dmvr/processors.py), which scenic's ViViT calls: values may leave
    [0, 1] on the way and are clipped at the end.

    Args:
      frames: float [..., H, W, 3] in [0, 1].
      brightness: added to every value.
      saturation: the saturation of HSV is multiplied by it; at least 0.
      contrast: distances from a channel's mean over the frame are multiplied by it.
      hue: turns of the colour circle, in [-1, 1].

    Returns:
      Same shape, in [0, 1].
    """
    frames = adjust_saturation(frames + brightness, saturation)
    mean = jnp.mean(frames, axis=(-3, -2), keepdims=True)
    frames = mean + contrast * (frames - mean)
    return jnp.clip(adjust_hue(frames, hue), 0.0, 1.0)


def adjust_saturation(frames: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the saturation of HSV by `factor` >= 0, up to 1; hue and value stay. Float [..., 3].

    With value v = max and chroma c = max - min, saturation is s = c / v, and a channel x = v - (v - x) lies below v in
    proportion to s. So there is no need to go through the hue. Values without a saturation (v <= 0) become grey, as in
    tf.image.adjust_saturation.
    """
    value, chroma = _value_and_chroma(frames)
    share = jnp.clip(value / jnp.where(chroma > 0, chroma, 1.0), 0.0, factor)  # new s / s; v / c brings s to 1
    return value - (value - frames) * share


def adjust_hue(frames: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns the hue by `turns` of the colour circle, in [-1, 1]; lightest and darkest channel keep their values.

    Float [..., 3] of any range, as in tf.image.adjust_hue. From colour to hue by cases (Smith, "Color gamut transform
    pairs", 1978), back by their closed form v - c max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for
    red, green and blue.
    """
    value, chroma = _value_and_chroma(frames)
    red, green, blue = (frames[..., i : i + 1] for i in range(3))
    # Sixths of the circle from the colour that is lightest: red at 0, green at 2, blue at 4. Which that is must not
    # be asked by `value == red`: the compiler may compute the two sides in two places, and round them differently.
    lightest_red, green_over_blue = (red >= green) & (red >= blue), green >= blue
    ahead = jnp.where(lightest_red, green - blue, jnp.where(green_over_blue, blue - red, red - green))
    start = jnp.where(lightest_red, 0.0, jnp.where(green_over_blue, 2.0, 4.0))
    sixths = start + ahead / jnp.where(chroma > 0, chroma, 1.0)
    k = jnp.mod(sixths + 6 * turns + jnp.array([5.0, 3.0, 1.0], frames.dtype), 6.0)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)


def _value_and_chroma(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """HSV's value, the largest channel, and chroma, the distance to the smallest: [..., 3] -> twice [..., 1]."""
    value = jnp.max(frames, axis=-1, keepdims=True)
    return value, value - jnp.min(frames, axis=-1, keepdims=True)


def to_grey(frames: jax.Array) -> jax.Array:
    """The grey version, float [..., 3]: all channels 0.2989 R + 0.5870 G + 0.1140 B (tf.image.rgb_to_grayscale)."""
    grey = sum(weight * frames[..., i : i + 1] for i, weight in enumerate(GREY))
    return jnp.broadcast_to(grey, frames.shape)


def mixup_weights(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """The share of each clip in its own mixture: lambda ~ Beta(alpha, alpha), one draw for a batch.

    mixup (Zhang et al., arXiv:1710.09412), as scenic's `dataset_utils.mixup` draws it. A clip whose partner is padding
    stays whole: weight 1.

    Args:
      key: random key.
      mask: [B], 0 on padding.
      alpha: > 0.

    Returns:
      float32 [B] in [0, 1], for `mix`.
    """
    return jnp.where(swap_pairs(mask) > 0, jax.random.beta(key, alpha, alpha), 1.0)


def mix(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`w x + (1 - w) x'` with x' the partner's values: frames or targets, float [B, ...]; `weights` [B]."""
    weights = weights.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    return weights * values + (1 - weights) * swap_pairs(values)


def swap_pairs(values: jax.Array) -> jax.Array:
    """Partners change places along the first axis: 0 with 1, 2 with 3, and so on; the last of an odd number stays.

    The published code pairs the first clip of each device's batch with its last, the second with the last but one, and
    so on: other pairs on other meshes. Neighbours are as random, a batch being a random draw, and the same pairs on any
    mesh. Where each device has an even number of clips they share a device, and no pixels travel; else they do.
    """
    pairs, rest = divmod(values.shape[0], 2)
    swapped = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(-1, *values.shape[1:])
    return jnp.concatenate([swapped, values[-1:]]) if rest else swapped
