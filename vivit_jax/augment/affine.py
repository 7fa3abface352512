"""Affine transforms of uint8 clips on the device, as Pillow's `Image.transform` with AFFINE and BILINEAR.

A transform maps the centre of each output pixel to the point of the input whose colour it gets,
(x, y) -> (a x + b y + c, d x + e y + f), in pixels, with the origin in the frame's upper left corner. Points outside
the frame become grey. All frames of a clip get the same transform.
"""

import jax
import jax.numpy as jnp

# Outside the frame, as in the RandAugment of tensorflow/models (official/legacy/image_classification/augment.py).
FILL = 128


def rotate(clip: jax.Array, degrees: jax.Array | float) -> jax.Array:
    """Rotates a clip, uint8 [T, H, W, 3], counter-clockwise about its centre (Pillow's `Image.rotate`)."""
    centre_y, centre_x = clip.shape[1] / 2, clip.shape[2] / 2
    angle = -jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b, d, e = cos, sin, -sin, cos
    return affine(clip, (a, b, centre_x - a * centre_x - b * centre_y, d, e, centre_y - d * centre_x - e * centre_y))


def affine(clip: jax.Array, coefficients: tuple[jax.Array | float, ...]) -> jax.Array:
    """Applies the transform with `coefficients` (a, b, c, d, e, f) to every frame of a clip, uint8 [T, H, W, 3].

    Bilinear. As in Pillow, the frame extends half a pixel beyond the centres of its outermost pixels, with their values
    there, and results are truncated to integers.
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
