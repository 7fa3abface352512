"""Colour jitter (brightness, saturation, contrast, hue) and greyscale of the paper's Kinetics recipe (appendix)."""

import jax
import jax.numpy as jnp

# Ranges of the published colour jitter, for pixels in [0, 1].
BRIGHTNESS = 32 / 255  # largest addition
SATURATION = CONTRAST = (0.6, 1.4)  # range of factors
HUE = 0.2  # largest rotation, in turns of the colour circle

# Weights of red, green and blue in tf.image.rgb_to_grayscale (ITU-R BT.601).
GREY = (0.2989, 0.5870, 0.1140)


def random_colours(key: jax.Array, clip: jax.Array, jitter_probability: float, grey_probability: float) -> jax.Array:
    """Applies colour jitter, then greyscale, each with its probability, with one draw for all frames.

    `clip` is [T, H, W, 3] in [0, 255], uint8 or float; the result is float32.
    """
    jitter, grey, *draws = jax.random.uniform(key, (6,))
    frames = clip.astype(jnp.float32)
    if jitter_probability:
        brightness, saturation, contrast, hue = draws
        jittered = jitter_colours(
            frames / 255.0,
            brightness=BRIGHTNESS * (2 * brightness - 1),
            saturation=SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation,
            contrast=CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast,
            hue=HUE * (2 * hue - 1),
        )
        frames = jnp.where(jitter < jitter_probability, 255.0 * jittered, frames)
    if grey_probability:
        frames = jnp.where(grey < grey_probability, to_grey(frames), frames)
    return frames


def jitter_colours(
    frames: jax.Array, *, brightness: jax.Array, saturation: jax.Array, contrast: jax.Array, hue: jax.Array
) -> jax.Array:
    """Applies colour jitter to frames, float [..., H, W, 3] in [0, 1], in the published order.

    `brightness` is added to every value; `saturation` >= 0 multiplies HSV's saturation, `contrast` >= 0 the distance
    from a channel's mean over the frame; `hue` is added to the hue, in turns of the colour circle. As in DMVR's
    `color_default_augm`, which scenic's ViViT calls, intermediate values may leave [0, 1], and the result is clipped.
    """
    frames = adjust_saturation(frames + brightness, saturation)
    mean = jnp.mean(frames, axis=(-3, -2), keepdims=True)
    frames = mean + contrast * (frames - mean)
    return jnp.clip(adjust_hue(frames, hue), 0.0, 1.0)


def adjust_saturation(frames: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the saturation of HSV by `factor` >= 0, up to 1, and keeps hue and value; float [..., 3].

    With value v = max and chroma c = max - min, the saturation is s = c / v, and v - x of each channel x is
    proportional to s: there is no need to compute the hue. Pixels without a saturation (v <= 0) become grey, as in
    tf.image.adjust_saturation.
    """
    value, chroma = _value_and_chroma(frames)
    share = jnp.clip(value / jnp.where(chroma > 0, chroma, 1.0), 0.0, factor)  # new s / s; v / c brings s to 1
    return value - (value - frames) * share


def adjust_hue(frames: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates the hue by `turns` of the colour circle, in [-1, 1], as tf.image.adjust_hue; float [..., 3], any range.

    The hue h is computed by cases (Smith, "Color gamut transform pairs", 1978); the new channels are
    v - c max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for red, green and blue.
    """
    value, chroma = _value_and_chroma(frames)
    red, green, blue = (frames[..., i : i + 1] for i in range(3))
    # Sixths of the circle from the largest channel: red at 0, green at 2, blue at 4. `value == red` would not find it
    # reliably: the compiler may compute the two sides twice and round them differently.
    red_is_largest, green_over_blue = (red >= green) & (red >= blue), green >= blue
    ahead = jnp.where(red_is_largest, green - blue, jnp.where(green_over_blue, blue - red, red - green))
    start = jnp.where(red_is_largest, 0.0, jnp.where(green_over_blue, 2.0, 4.0))
    sixths = start + ahead / jnp.where(chroma > 0, chroma, 1.0)
    k = jnp.mod(sixths + 6 * turns + jnp.array([5.0, 3.0, 1.0], frames.dtype), 6.0)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)


def _value_and_chroma(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """HSV's value, max, and chroma, max - min: [..., 3] -> two arrays [..., 1]."""
    value = jnp.max(frames, axis=-1, keepdims=True)
    return value, value - jnp.min(frames, axis=-1, keepdims=True)


def to_grey(frames: jax.Array) -> jax.Array:
    """Returns float [..., 3] with all channels 0.2989 R + 0.5870 G + 0.1140 B (tf.image.rgb_to_grayscale)."""
    grey = sum(weight * frames[..., i : i + 1] for i, weight in enumerate(GREY))
    return jnp.broadcast_to(grey, frames.shape)
