"""Random keys of clips, and boxes of pixels: what several augmentations draw."""

import jax
import jax.numpy as jnp


def clip_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns a key for each index in the global batch, [B]; it depends neither on the mesh nor on the batch size."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch_size))


def box(size: tuple[int, int], low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns the mask of a box of pixels, bool [H, W] = `size`.

    The box starts at the row and column `low`, int [2], and ends before `high`; both may lie outside the frame.
    """
    rows, columns = ((jnp.arange(n) >= low[i]) & (jnp.arange(n) < high[i]) for i, n in enumerate(size))
    return rows[:, None] & columns
