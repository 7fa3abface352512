"""What is drawn for a clip: its key, and boxes in its frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def clip_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key for each place in the global batch, [B], whatever the mesh and the batch size."""
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch_size))


def box(size: tuple[int, int], low: jax.Array, high: jax.Array) -> jax.Array:
    """Which pixels of a frame lie in a box.

    Args:
      size: (H, W) of the frame.
      low: int [2], the first row and column of the box.
      high: int [2], the row and column behind its last. Whatever lies beyond the frame is cut off.

    Returns:
      bool [H, W].
    """
    rows, columns = ((jnp.arange(n) >= low[i]) & (jnp.arange(n) < high[i]) for i, n in enumerate(size))
    return rows[:, None] & columns
