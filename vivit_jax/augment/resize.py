"""Crop, resize and flip of training clips, for an input pipeline that leaves them to the device."""

import jax
import jax.numpy as jnp


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
