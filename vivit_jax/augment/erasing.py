"""Keys of clips, boxes of pixels, and random erasing (Zhong et al., arXiv:1708.04896), the same in all frames."""

import jax
import jax.numpy as jnp

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
