"""RandAugment on clips (Cubuk et al., arXiv:1909.13719), on the device: uint8 in, uint8 out.

The set `paper` is the variant that the paper's recipes for Epic Kitchens and Something-Something name (its
appendix): no operation that moves pixels, and one draw of operations for all frames of a clip. Its published form is
`distort_image_with_randaugment` of scenic's `dataset_lib/video_ops.py`, over the operations and magnitudes of
`official/legacy/image_classification/augment.py` in tensorflow/models. The set `video` has RandAugment's geometric
operations too (module `affine`), each by the same map in all frames, so that nothing jumps.

The operations are those of Pillow's ImageOps and ImageEnhance, in the same integer arithmetic. A clip is one picture,
its frames stacked: lowest and highest value, histogram and mean are taken over the whole clip, as published, so that
nothing flickers. Three things of the published code are not copied: its Contrast blends with white for anything
larger than 256 x 256 pixels, since it takes the number of pixels for the mean grey value; its Sharpness mixes the
last row of a frame with the first row of the next; both and its Color round otherwise than Pillow.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.augment import affine

OPERATION_SETS = ("paper", "video")
MAX_LEVEL = 10  # the magnitude at which the published formulas reach the far end of their scale
CUTOUT_SCALE = 40  # half the side of Cutout's square at that magnitude, in pixels
ROTATION = 30.0  # degrees at that magnitude
SHEAR = 0.3  # columns a row, or rows a column, at that magnitude
TRANSLATION = 100 / 224  # of the frame's side at that magnitude: the published 100 pixels of the published size

Operation = Callable[[jax.Array, jax.Array], jax.Array]  # (clip [T, H, W, 3], key) -> clip


def rand_augment(keys: jax.Array, video: jax.Array, *, layers: int, magnitude: float, ops: str = "paper") -> jax.Array:
    """`layers` operations one after another on each clip, each drawn uniformly from `operations(magnitude, ops)`.

    Args:
      keys: [B] random keys, one a clip.
      video: uint8 [B, T, H, W, 3].
      layers: operations a clip, N of the RandAugment paper; at least 0.
      magnitude: strength of all operations, M of the RandAugment paper; at least 0.
      ops: the set of operations, 'paper' or 'video'.

    Returns:
      uint8 [B, T, H, W, 3]; all frames of a clip are treated alike.

    Raises:
      TypeError: the video is not uint8.
      ValueError: an unknown set of operations.
    """
    if video.dtype != jnp.uint8:
        raise TypeError(f"RandAugment takes uint8 pixels, not {video.dtype}; apply it before normalising")
    branches = list(operations(magnitude, ops).values())

    def one_clip(key_and_clip: tuple[jax.Array, jax.Array]) -> jax.Array:
        def layer(clip: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            which, where = jax.random.split(key)
            return jax.lax.switch(jax.random.randint(which, (), 0, len(branches)), branches, clip, where), None

        key, clip = key_and_clip
        return jax.lax.scan(layer, clip, jax.random.split(key, layers))[0]

    # One clip after another, so that `switch` runs the one operation drawn: under vmap it would run all of them on
    # every clip. A loop over a sharded axis would gather the batch on every device, hence each loops over its own rows.
    return sharding.shard_map_batch(lambda keys, video: jax.lax.map(one_clip, (keys, video)))(keys, video)


def operations(magnitude: float, ops: str = "paper") -> dict[str, Operation]:
    """The operations of a set at a magnitude, by name, as functions (clip uint8 [T, H, W, 3], key) -> clip.

    With m = magnitude / 10 and integers cut off: Posterize keeps 4 m bits; Solarize inverts the values from 256 m on;
    SolarizeAdd adds 110 m to those below 128; Color, Contrast, Brightness and Sharpness blend with factor 1.8 m + 0.1
    (1 leaves the clip as it is, more exaggerates); Cutout blackens a square of 80 m pixels.

    The recipes use magnitudes of 15 and 20, beyond the scale. There the formulas give factors of 2.8 and 3.7, squares
    of 120 and 160 pixels, 165 and 220 to add, up to white. Where one leaves its range it is clipped: Posterize at all 8
    bits, Solarize at 256. Hence Posterize does nothing from a magnitude of 20 on, and Solarize from 10 on.

    `video` adds Rotate by 30 m degrees, ShearX and ShearY by 0.3 m, TranslateX and TranslateY by 100 m / 224 of the
    frame's side, in whole pixels; to either side with equal probability, and with grey where nothing comes from. These
    are RandAugment's (tensorflow/models), whose 100 m pixels are for frames of 224; from a magnitude of 22.4 on a
    translation leaves nothing of the frame.

    Args:
      magnitude: at least 0.
      ops: 'paper', twelve operations, or 'video', seventeen.

    Raises:
      ValueError: another set.
    """
    if ops not in OPERATION_SETS:
        raise ValueError(f"ops={ops!r}; choose one of {', '.join(OPERATION_SETS)}")

    def level(scale: float) -> int:
        return int(magnitude / MAX_LEVEL * scale)

    factor = magnitude / MAX_LEVEL * 1.8 + 0.1
    paper = {
        "AutoContrast": lambda clip, key: auto_contrast(clip),
        "Equalize": lambda clip, key: equalize(clip),
        "Invert": lambda clip, key: 255 - clip,
        "Posterize": lambda clip, key: posterize(clip, min(level(4), 8)),
        "Solarize": lambda clip, key: solarize(clip, min(level(256), 256)),
        "Color": lambda clip, key: colour(clip, factor),
        "Contrast": lambda clip, key: contrast(clip, factor),
        "Brightness": lambda clip, key: brightness(clip, factor),
        "Sharpness": lambda clip, key: sharpness(clip, factor),
        "Cutout": lambda clip, key: cutout(clip, key, level(CUTOUT_SCALE)),
        "SolarizeAdd": lambda clip, key: solarize_add(clip, min(level(110), 255)),
        "Identity": lambda clip, key: clip,
    }
    if ops == "paper":
        return paper

    def either_side(strength: float, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), strength, -strength)

    turn, slope = magnitude / MAX_LEVEL * ROTATION, magnitude / MAX_LEVEL * SHEAR
    return paper | {
        "Rotate": lambda clip, key: affine.rotate(clip, either_side(turn, key)),
        "ShearX": lambda clip, key: affine.shear_x(clip, either_side(slope, key)),
        "ShearY": lambda clip, key: affine.shear_y(clip, either_side(slope, key)),
        "TranslateX": lambda clip, key: affine.translate_x(clip, either_side(level(TRANSLATION * clip.shape[2]), key)),
        "TranslateY": lambda clip, key: affine.translate_y(clip, either_side(level(TRANSLATION * clip.shape[1]), key)),
    }


def auto_contrast(clip: jax.Array) -> jax.Array:
    """Stretches each channel of a clip, uint8 [T, H, W, 3], to 0 ... 255; a channel of one value stays (ImageOps)."""
    low, high = (f(clip, axis=(0, 1, 2)).astype(jnp.int32) for f in (jnp.min, jnp.max))
    stretched = (clip.astype(jnp.int32) - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched.astype(jnp.uint8), clip)


def equalize(clip: jax.Array) -> jax.Array:
    """Flattens the histogram of each channel of a clip, uint8 [T, H, W, 3] (ImageOps)."""

    def channel(values: jax.Array) -> jax.Array:
        values = values.astype(jnp.int32)
        histogram = jnp.bincount(values, length=256)
        below = jnp.cumsum(histogram) - histogram
        step = (values.size - histogram[jnp.max(values)]) // 255
        table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[values], values).astype(jnp.uint8)

    return jax.vmap(channel, in_axes=1, out_axes=1)(clip.reshape(-1, 3)).reshape(clip.shape)


def posterize(clip: jax.Array, bits: int) -> jax.Array:
    """Keeps the highest `bits`, 0 to 8, of each value, uint8 (ImageOps)."""
    return clip & jnp.uint8((0xFF << (8 - bits)) & 0xFF)


def solarize(clip: jax.Array, threshold: int) -> jax.Array:
    """Inverts the values from `threshold` on, uint8; 256 inverts none (ImageOps)."""
    return jnp.where(clip.astype(jnp.int32) < threshold, clip, 255 - clip)


def solarize_add(clip: jax.Array, addition: int) -> jax.Array:
    """Adds `addition`, 0 to 255, to the values below 128, uint8, up to 255 (no counterpart in Pillow)."""
    return jnp.where(clip < 128, jnp.minimum(clip.astype(jnp.int32) + addition, 255).astype(jnp.uint8), clip)


def colour(clip: jax.Array, factor: float) -> jax.Array:
    """Saturation: blends a clip, uint8 [T, H, W, 3], with its grey version (ImageEnhance.Color)."""
    return _blend(_grey(clip), clip, factor)


def contrast(clip: jax.Array, factor: float) -> jax.Array:
    """Blends a clip, uint8 [T, H, W, 3], with its mean grey value, rounded (ImageEnhance)."""
    frames = jnp.sum(_grey(clip), axis=(1, 2, 3))  # exact; a sum over the clip could overflow int32
    mean = jnp.mean(frames.astype(jnp.float32)) / (clip.shape[1] * clip.shape[2])
    return _blend(jnp.floor(mean + 0.5), clip, factor)


def brightness(clip: jax.Array, factor: float) -> jax.Array:
    """Blends a clip, uint8, with black (ImageEnhance)."""
    return _blend(0, clip, factor)


def sharpness(clip: jax.Array, factor: float) -> jax.Array:
    """Blends each frame of a clip, uint8 [T, H, W, 3], with its smoothed version (ImageEnhance).

    The filter is Pillow's SMOOTH, 3 x 3 with weights (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay.
    """
    x = clip.astype(jnp.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    return _blend(x.at[inner].set((box + 4 * x[inner] + 6) // 13), clip, factor)  # + 6: rounds to nearest


def cutout(clip: jax.Array, key: jax.Array, half: int) -> jax.Array:
    """Blackens the same square in all frames of a clip, uint8 [T, H, W, 3] (DeVries & Taylor, arXiv:1708.04552).

    The square has a side of `2 * half` pixels and a centre uniform over the frame, beyond whose border it is cut off.
    Black as in the published clips: the grey value that the code names does not reach its Cutout.
    """
    inside = []
    for size, one_key in zip(clip.shape[1:3], jax.random.split(key), strict=True):
        from_centre = jnp.arange(size) - jax.random.randint(one_key, (), 0, size)
        inside.append((from_centre >= -half) & (from_centre < half))
    return jnp.where((inside[0][:, None] & inside[1])[..., None], jnp.uint8(0), clip)


def _grey(clip: jax.Array) -> jax.Array:
    """Luma (ITU-R BT.601) in Pillow's 16-bit fixed point, [..., 3] uint8 -> [..., 1] int32 in 0 ... 255."""
    red, green, blue = (clip[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


def _blend(base: jax.Array | int, clip: jax.Array, factor: float) -> jax.Array:
    """`base + factor * (clip - base)`, clipped to 0 ... 255 and cut off to integers as in Pillow's Image.blend."""
    base = jnp.asarray(base).astype(jnp.float32)
    mixed = base + jnp.float32(factor) * (clip.astype(jnp.float32) - base)
    return jnp.clip(mixed, 0.0, 255.0).astype(jnp.uint8)
