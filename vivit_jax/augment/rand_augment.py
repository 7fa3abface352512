"""RandAugment (Cubuk et al., arXiv:1909.13719) of uint8 clips, on the device.

The set `paper` is what the recipes for Epic Kitchens and Something-Something use (appendix): no operation moves pixels,
and all frames of a clip get the same operations. Its published form is `distort_image_with_randaugment` of scenic's
`dataset_lib/video_ops.py`, with the operations and magnitudes of `official/legacy/image_classification/augment.py` in
tensorflow/models. The set `video` adds RandAugment's geometric operations (`affine`).

The operations are those of Pillow's ImageOps and ImageEnhance, in the same integer arithmetic, with minimum, maximum,
histogram and mean over the whole clip, as published, so that frames do not flicker. Not copied: the published Contrast
takes the number of pixels for the mean grey value, its Sharpness mixes the last row of a frame with the first of the
next, and both and Color round differently from Pillow.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.augment.pixels import box

# The published formulas at magnitude `MAX_LEVEL`, the end of their scale:
MAX_LEVEL = 10
CUTOUT_SCALE = 40  # half the side of Cutout's square, in pixels
ROTATION = 30.0  # degrees
SHEAR = 0.3  # columns per row, or rows per column
TRANSLATION = 100 / 224  # share of the frame's side: the published 100 pixels at the published size
FILL = 128  # outside the frame

Operation = Callable[[jax.Array, jax.Array], jax.Array]  # (clip [T, H, W, 3], key) -> clip


def rand_augment(keys: jax.Array, video: jax.Array, *, layers: int, magnitude: float, ops: str = "paper") -> jax.Array:
    """Applies `layers` operations to each clip, drawn uniformly from `operations(magnitude, ops)`.

    `video` is uint8 [B, T, H, W, 3], `keys` are [B]; `layers` and `magnitude` are N and M of the RandAugment paper.
    """
    if video.dtype != jnp.uint8:
        raise TypeError(f"RandAugment takes uint8 pixels, not {video.dtype}; apply it before normalising")
    branches = list(operations(magnitude, ops).values())

    def one_clip(key_and_clip: tuple[jax.Array, jax.Array]) -> jax.Array:
        def layer(clip: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            choice_key, operation_key = jax.random.split(key)
            choice = jax.random.randint(choice_key, (), 0, len(branches))
            return jax.lax.switch(choice, branches, clip, operation_key), None

        key, clip = key_and_clip
        return jax.lax.scan(layer, clip, jax.random.split(key, layers))[0]

    # A loop over clips, because under vmap `switch` would run all operations on every clip. Each device loops over its
    # own rows, because a loop over a sharded axis would gather the batch on every device.
    return sharding.shard_map_batch(lambda keys, video: jax.lax.map(one_clip, (keys, video)))(keys, video)


def operations(magnitude: float, ops: str = "paper") -> dict[str, Operation]:
    """Returns the operations of a set at a magnitude: {name: function (clip uint8 [T, H, W, 3], key) -> clip}.

    With m = magnitude / 10, truncated to integers where needed: Posterize keeps 4 m bits; Solarize inverts values from
    256 m on; SolarizeAdd adds 110 m to values below 128; Color (with the grey clip), Contrast, Brightness (with black)
    and Sharpness blend with factor 1.8 m + 0.1 (1 changes nothing); Cutout blackens a square with sides of 80 m pixels.

    The recipes use magnitudes 15 and 20, beyond the scale. Values beyond an operation's range are clipped: Posterize
    has no effect from magnitude 20 on, Solarize from 10 on.

    'video' adds Rotate by 30 m degrees, ShearX and ShearY by 0.3 m, TranslateX and TranslateY by 100 m / 224 of the
    frame's side in whole pixels (tensorflow/models: 100 m pixels), in a random direction, with grey outside the frame.
    From magnitude 22.4 on a translation leaves nothing of the frame.
    """

    def level(scale: float) -> int:
        return int(magnitude / MAX_LEVEL * scale)

    def brighter(clip: jax.Array, addition: int) -> jax.Array:
        return jnp.minimum(clip.astype(jnp.int32) + addition, 255).astype(jnp.uint8)

    factor = magnitude / MAX_LEVEL * 1.8 + 0.1
    paper = {
        "AutoContrast": lambda clip, key: auto_contrast(clip),
        "Equalize": lambda clip, key: equalize(clip),
        "Invert": lambda clip, key: 255 - clip,
        "Posterize": lambda clip, key: clip & jnp.uint8((0xFF << max(8 - level(4), 0)) & 0xFF),
        "Solarize": lambda clip, key: jnp.where(clip.astype(jnp.int32) < level(256), clip, 255 - clip),
        "Color": lambda clip, key: _blend(_grey(clip), clip, factor),
        "Contrast": lambda clip, key: contrast(clip, factor),
        "Brightness": lambda clip, key: _blend(0, clip, factor),
        "Sharpness": lambda clip, key: sharpness(clip, factor),
        "Cutout": lambda clip, key: cutout(clip, key, level(CUTOUT_SCALE)),
        "SolarizeAdd": lambda clip, key: jnp.where(clip < 128, brighter(clip, min(level(110), 255)), clip),
        "Identity": lambda clip, key: clip,
    }
    if ops == "paper":
        return paper

    def random_sign(strength: float, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), strength, -strength)

    def shift(clip: jax.Array, axis: int, key: jax.Array) -> jax.Array:
        return random_sign(level(TRANSLATION * clip.shape[axis]), key)

    angle, slope = magnitude / MAX_LEVEL * ROTATION, magnitude / MAX_LEVEL * SHEAR
    return paper | {
        "Rotate": lambda clip, key: rotate(clip, random_sign(angle, key)),
        "ShearX": lambda clip, key: affine(clip, (1, random_sign(slope, key), 0, 0, 1, 0)),
        "ShearY": lambda clip, key: affine(clip, (1, 0, 0, random_sign(slope, key), 1, 0)),
        "TranslateX": lambda clip, key: affine(clip, (1, 0, shift(clip, 2, key), 0, 1, 0)),
        "TranslateY": lambda clip, key: affine(clip, (1, 0, 0, 0, 1, shift(clip, 1, key))),
    }


def auto_contrast(clip: jax.Array) -> jax.Array:
    """Stretches each channel of a clip, uint8 [T, H, W, 3], to 0 ... 255; constant channels stay (ImageOps)."""
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


def contrast(clip: jax.Array, factor: float) -> jax.Array:
    """Blends a clip, uint8 [T, H, W, 3], with its mean grey value, rounded (ImageEnhance)."""
    frames = jnp.sum(_grey(clip), axis=(1, 2, 3))  # exact; the sum over the clip could overflow int32
    mean = jnp.mean(frames.astype(jnp.float32)) / (clip.shape[1] * clip.shape[2])
    return _blend(jnp.floor(mean + 0.5), clip, factor)


def sharpness(clip: jax.Array, factor: float) -> jax.Array:
    """Blends each frame of a clip, uint8 [T, H, W, 3], with its smoothed version (ImageEnhance).

    The filter is Pillow's SMOOTH, 3 x 3 with weights (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay.
    """
    x = clip.astype(jnp.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    return _blend(x.at[inner].set((total + 4 * x[inner] + 6) // 13), clip, factor)  # + 6: rounds to nearest


def cutout(clip: jax.Array, key: jax.Array, half: int) -> jax.Array:
    """Blackens the same square in all frames of a clip, uint8 [T, H, W, 3] (DeVries & Taylor, arXiv:1708.04552).

    The square has sides of `2 * half` pixels and a centre uniform over the frame; the part outside is cut off. It is
    black because the published code does not pass its grey value on to Cutout.
    """
    size = clip.shape[1:3]
    centre = jnp.stack([jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), size, strict=True)])
    return jnp.where(box(size, centre - half, centre + half)[..., None], jnp.uint8(0), clip)


def rotate(clip: jax.Array, degrees: jax.Array | float) -> jax.Array:
    """Rotates a clip, uint8 [T, H, W, 3], counter-clockwise about its centre (Pillow's `Image.rotate`)."""
    y, x = clip.shape[1] / 2, clip.shape[2] / 2  # the centre
    angle = -jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return affine(clip, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def affine(clip: jax.Array, coefficients: tuple[jax.Array | float, ...]) -> jax.Array:
    """Applies Pillow's `Image.transform`, AFFINE and BILINEAR, to every frame of a clip, uint8 [T, H, W, 3].

    With `coefficients` (a, b, c, d, e, f), the centre of each output pixel gets the colour at the point
    (x, y) -> (a x + b y + c, d x + e y + f) of the input, in pixels, with the origin in the frame's upper left corner.
    As in Pillow, the frame extends half a pixel beyond the centres of its outermost pixels, with their values there,
    and results are truncated to integers. Points outside the frame become grey.
    """
    frames, height, width, channels = clip.shape
    a, b, c, d, e, f = coefficients
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    right_share, lower_share = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - top)[..., None]
    # One row per pixel with all frames: four reads of T * 3 contiguous values instead of T times as many.
    pixels = jnp.moveaxis(clip, 0, 2).reshape(height * width, frames * channels)

    def corner(down: int, right: int) -> jax.Array:
        row = jnp.clip(top + down, 0, height - 1).astype(jnp.int32)
        column = jnp.clip(left + right, 0, width - 1).astype(jnp.int32)
        return pixels[row * width + column].astype(jnp.float32)  # [H, W, T * 3]

    def between(low: jax.Array, high: jax.Array, share: jax.Array) -> jax.Array:
        return low + (high - low) * share

    upper = between(corner(0, 0), corner(0, 1), right_share)
    lower = between(corner(1, 0), corner(1, 1), right_share)
    values = between(upper, lower, lower_share).astype(jnp.uint8)
    values = jnp.where(inside[..., None], values, jnp.uint8(FILL))
    return jnp.moveaxis(values.reshape(height, width, frames, channels), 2, 0)


def _grey(clip: jax.Array) -> jax.Array:
    """Luma (ITU-R BT.601) in Pillow's 16-bit fixed point, [..., 3] uint8 -> [..., 1] int32 in 0 ... 255."""
    red, green, blue = (clip[..., i : i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


def _blend(base: jax.Array | int, clip: jax.Array, factor: float) -> jax.Array:
    """`base + factor * (clip - base)`, clipped to 0 ... 255 and truncated to integers as in Pillow's Image.blend."""
    base = jnp.asarray(base).astype(jnp.float32)
    mixed = base + jnp.float32(factor) * (clip.astype(jnp.float32) - base)
    return jnp.clip(mixed, 0.0, 255.0).astype(jnp.uint8)
