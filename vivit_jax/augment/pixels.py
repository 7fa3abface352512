"""Pixels of clips besides RandAugment, with one draw for all frames: colours (the paper's Kinetics recipe, appendix),
random erasing (Zhong et al., arXiv:1708.04896), mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899), resizing."""

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.augment.config import AugmentConfig

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
    proportional to s: there is no need to compute the hue. Pixels with v <= 0 become grey, as in tf.image.
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
    sixths = start + ahead / jnp.where(chroma > 0, chroma, 1.0) + 6 * turns

    def channel(n: float) -> jax.Array:  # as one expression of all channels, or by jnp.mod, it is slower on CPUs
        k = sixths + n - 6 * jnp.floor((sixths + n) / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)

    return jnp.concatenate([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _value_and_chroma(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """HSV's value, max, and chroma, max - min: [..., 3] -> two arrays [..., 1]."""
    red, green, blue = (frames[..., i : i + 1] for i in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    return value, value - jnp.minimum(jnp.minimum(red, green), blue)


def to_grey(frames: jax.Array) -> jax.Array:
    """Returns float [..., 3] with all channels 0.2989 R + 0.5870 G + 0.1140 B (tf.image.rgb_to_grayscale)."""
    grey = sum(weight * frames[..., i : i + 1] for i, weight in enumerate(GREY))
    return jnp.broadcast_to(grey, frames.shape)


def resize_windows(video: jax.Array, window: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes a window of each clip of `video`, uint8 [B, T, H, W, 3], to uint8 [B, T, *size, 3], as the pipeline.

    Bilinear with half-pixel centres, antialiased if a side shrinks below three quarters: two matrix products per frame.
    `window` is int32 [B, 5]: first row, first column, rows, columns, and 1 for a clip to be flipped left to right.
    """

    def resize(clip: jax.Array, window: jax.Array) -> jax.Array:
        start, count, target = window[:2], window[2:4], jnp.array(size)
        antialias = jnp.min(target / count) < 0.75
        rows, columns = (_weights(start[i], count[i], clip.shape[i + 1], size[i], antialias) for i in (0, 1))
        columns = jnp.where(window[4] == 1, columns[::-1], columns)
        # In full float32: with the fast products of TPUs and GPUs pixels would be off by more than rounding.
        frames = jnp.einsum("ih,thwc->tiwc", rows, clip.astype(jnp.float32), precision="highest")
        frames = jnp.einsum("jw,tiwc->tijc", columns, frames, precision="highest")
        return jnp.floor(frames + 0.5).astype(jnp.uint8)

    return jax.vmap(resize)(video, window)


def _weights(start: jax.Array, count: jax.Array, length: int, size: int, antialias: jax.Array) -> jax.Array:
    """Returns the weights of `length` stored pixels in each of `size` pixels made of `count` from `start` on."""
    ratio = count / size
    centre = (jnp.arange(size) + 0.5)[:, None] * ratio
    centre = jnp.where(antialias, centre, jnp.clip(centre, 0.5, count - 0.5))
    pixel = jnp.arange(length) - start
    distance = jnp.abs(pixel + 0.5 - centre) / jnp.where(antialias, jnp.maximum(ratio, 1.0), 1.0)
    weights = jnp.where((pixel >= 0) & (pixel < count), jnp.maximum(0.0, 1.0 - distance), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


AREA, ASPECT = (0.02, 0.4), 0.3  # as published
# Boxes drawn, of which the first that fits into the frame is used. The published algorithm draws until one fits, which
# a compiled program cannot; with its settings one draw in 30 does not fit, so ten in a row practically never.
ATTEMPTS = 10


def clip_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns a key for each index in the global batch, [B]; it depends neither on the mesh nor on the batch size."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch_size))


def box(size: tuple[int, int], low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns the mask, bool [H, W] = `size`, of a box from int [2] `low` to before `high`; they may be outside."""
    rows, columns = ((jnp.arange(n) >= low[i]) & (jnp.arange(n) < high[i]) for i, n in enumerate(size))
    return rows[:, None] & columns


def erase(keys: jax.Array, video: jax.Array, *, probability: float) -> jax.Array:
    """Fills a box of each clip of `video`, [B, T, H, W, 3] in [0, 255], with noise, with a probability in [0, 1].

    The noise is uniform in [0, 255] for each pixel and channel (best in the paper of random erasing), and the same in
    all frames, so that it adds no motion. `keys` are [B].
    """

    def one_clip(key: jax.Array, clip: jax.Array) -> jax.Array:
        choice_key, box_key, noise_key = jax.random.split(key, 3)
        erased = erased_box(box_key, clip.shape[1:3]) & (jax.random.uniform(choice_key) < probability)  # [H, W]
        noise = jax.random.bits(noise_key, clip.shape[1:], jnp.uint8)
        return jnp.where(erased[..., None], noise.astype(clip.dtype), clip)

    return jax.vmap(one_clip)(keys, video)


def erased_box(
    key: jax.Array, size: tuple[int, int], area: tuple[float, float] = AREA, aspect: float = ASPECT
) -> jax.Array:
    """Draws the box to erase: algorithm 1 of the paper of random erasing, bool [H, W] = `size`.

    The box has a uniform share of the frame's area, in the range `area`; a log-uniform ratio of height to width in
    [aspect, 1 / aspect], so that tall and wide boxes are equally likely (as in timm and torchvision; the paper draws it
    uniformly); and a uniform position. If none of `ATTEMPTS` boxes fits into the frame, nothing is erased.
    """
    (key,) = jax.random.split(key, 1)  # from when there could be several boxes: keeps the draws of older runs
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    pixels = jax.random.uniform(area_key, (ATTEMPTS,), minval=area[0], maxval=area[1]) * (size[0] * size[1])
    ratio = jnp.exp(jnp.log(aspect) * jax.random.uniform(ratio_key, (ATTEMPTS,), minval=-1.0, maxval=1.0))
    sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratio, pixels / ratio], axis=-1))).astype(jnp.int32)
    fits = jnp.all(sides <= jnp.array(size), axis=-1)  # [ATTEMPTS]
    sides = jnp.where(jnp.any(fits), jnp.maximum(sides[jnp.argmax(fits)], 1), 0)  # [2]: height, width
    low = jax.random.randint(position_key, (2,), 0, jnp.array(size) - sides + 1)
    return box(size, low, low + sides)


def mix_clips(key: jax.Array, video: jax.Array, mask: jax.Array, config: AugmentConfig) -> tuple[jax.Array, jax.Array]:
    """Mixes each clip with its partner (`swap_pairs`) by mixup or cutmix; if both are on, one of them is drawn.

    `video` is float [B, T, H, W, 3]. A clip whose partner is padding (0 in `mask`, [B]) is not mixed.

    Returns:
      (mixed video; float32 [B] in [0, 1], the weight of each clip's own label for `mix`: lambda for mixup, for cutmix
      the share of the frame outside the box).
    """
    if not (config.cutmix or config.mix_per_example):
        shares = mixup_weights(key, mask, config.mixup)
        return mix(video, shares), shares

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws the weight of the clip itself in each pixel, [H, W], and in the label, []."""
        choice_key, lambda_key, box_key = jax.random.split(key, 3)
        if config.mixup and config.cutmix:
            cuts = jax.random.bernoulli(choice_key, 0.5)
            alpha = jnp.where(cuts, config.cutmix, config.mixup)
        else:
            cuts, alpha = jnp.asarray(bool(config.cutmix)), config.cutmix or config.mixup
        share = jax.random.beta(lambda_key, alpha, alpha)
        inside = cutmix_box(box_key, video.shape[2:4], share)
        return jnp.where(cuts, jnp.where(inside, 0.0, 1.0), share), jnp.where(cuts, jnp.mean(~inside), share)

    if config.mix_per_example:
        # Beta is drawn by rejection in a loop, which would synchronise all devices in each iteration.
        weights, shares = sharding.shard_map_batch(jax.vmap(draw))(clip_keys(key, len(video)))
    else:
        weights, shares = (jnp.broadcast_to(x, (len(video), *x.shape)) for x in draw(key))
    paired = swap_pairs(mask) > 0
    weights = jnp.where(paired[:, None, None], weights, 1.0)
    return mix(video, weights[:, None, :, :, None]), jnp.where(paired, shares, 1.0)


def mixup_weights(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """Draws the weight of each clip in its mixture, [B]: lambda ~ Beta(alpha, alpha), one draw per batch.

    As in scenic's `dataset_utils.mixup`. A clip whose partner is padding (0 in `mask`) gets 1.
    """
    return jnp.where(swap_pairs(mask) > 0, jax.random.beta(key, alpha, alpha), 1.0)


def cutmix_box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """Draws the box of cutmix that shows the partner, bool [H, W] (Yun et al., arXiv:1905.04899, section 3.1).

    Its sides are those of the frame times sqrt(1 - lambda), rounded down to even numbers as in the authors' code, its
    centre is uniform over the frame, and the part outside is cut off. `share` is lambda, in [0, 1].
    """
    half = jnp.floor(jnp.array(size) * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, jnp.array(size))
    return box(size, centre - half, centre + half)


def mix(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns w x + (1 - w) x' of `values` x, float [B, ...], and the partner's, x'; `weights` [B] or [B, ...]."""
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)).astype(values.dtype)
    return weights * values + (1 - weights) * swap_pairs(values)


def swap_pairs(values: jax.Array) -> jax.Array:
    """Swaps neighbours along the first axis, 0 with 1, 2 with 3, and so on; the last of an odd number stays.

    The published code pairs the first clip of each device's batch with its last, the second with the last but one, and
    so on: the pairs depend on the mesh. Neighbours in the global batch are as random, and the same on any mesh. Where
    each device has an even number of clips, no pixels move between devices.
    """
    pairs, rest = divmod(values.shape[0], 2)
    swapped = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(-1, *values.shape[1:])
    return jnp.concatenate([swapped, values[-1:]]) if rest else swapped
