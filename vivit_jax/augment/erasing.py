"""Random erasing of clips (Zhong et al., arXiv:1708.04896): boxes of the frame, the same in all frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vivit_jax.augment.draws import box

FILLS = ("zero", "mean", "noise")
AREA, ASPECT = (0.02, 0.4), 0.3  # as published
# Boxes drawn, of which the first that fits into the frame is used. The published algorithm draws until one fits, which
# a compiled program cannot; with its settings one draw in 30 does not fit, so ten in a row practically never.
ATTEMPTS = 10


def erase(
    keys: jax.Array,
    video: jax.Array,
    *,
    probability: float,
    area: tuple[float, float] = AREA,
    aspect: float = ASPECT,
    count: int = 1,
    fill: str = "noise",
) -> jax.Array:
    """Erases boxes in a random part of the clips.

    Args:
      keys: [B] random keys, one per clip.
      video: [B, T, H, W, 3] in [0, 255], uint8 or float.
      probability: in [0, 1], of erasing boxes of a clip.
      area, aspect, count: see `erase_boxes`.
      fill: 'zero', black; 'mean', the clip's mean colour; 'noise', uniform in [0, 255] for each pixel and channel (best
        in the paper of random erasing), the same in all frames, so that it adds no motion.

    Returns:
      [B, T, H, W, 3] in the dtype of `video`.

    Raises:
      ValueError: an unknown fill.
    """
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r}; choose one of {', '.join(FILLS)}")

    def one_clip(key: jax.Array, clip: jax.Array) -> jax.Array:
        choice_key, box_key, fill_key = jax.random.split(key, 3)
        erased = erase_boxes(box_key, clip.shape[1:3], area, aspect, count)  # [H, W]
        erased &= jax.random.uniform(choice_key) < probability
        if fill == "zero":
            values = jnp.zeros(3)
        elif fill == "mean":
            values = jnp.mean(clip.astype(jnp.float32), axis=(0, 1, 2))
            values = jnp.round(values) if jnp.issubdtype(clip.dtype, jnp.integer) else values
        else:
            values = jax.random.bits(fill_key, clip.shape[1:], jnp.uint8)
        return jnp.where(erased[..., None], values.astype(clip.dtype), clip)

    return jax.vmap(one_clip)(keys, video)


def erase_boxes(
    key: jax.Array, size: tuple[int, int], area: tuple[float, float], aspect: float, count: int
) -> jax.Array:
    """Draws the boxes to erase: algorithm 1 of the paper of random erasing, `count` times.

    A box has a uniform area, a log-uniform ratio of height to width (so that tall and wide boxes are equally likely, as
    in timm and torchvision; the paper draws it uniformly), and a uniform position inside the frame. If none of
    `ATTEMPTS` boxes fits into the frame, nothing is erased.

    Args:
      key: of the clip.
      size: (H, W) of the frame.
      area: (low, high), the share of the frame for all boxes together, which may overlap.
      aspect: the ratio lies in [aspect, 1 / aspect].
      count: number of boxes.

    Returns:
      bool [H, W], True where pixels are erased.
    """

    def one_box(key: jax.Array) -> jax.Array:
        area_key, ratio_key, position_key = jax.random.split(key, 3)
        pixels = jax.random.uniform(area_key, (ATTEMPTS,), minval=area[0], maxval=area[1]) * (size[0] * size[1] / count)
        ratio = jnp.exp(jnp.log(aspect) * jax.random.uniform(ratio_key, (ATTEMPTS,), minval=-1.0, maxval=1.0))
        sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratio, pixels / ratio], axis=-1))).astype(jnp.int32)
        fits = jnp.all(sides <= jnp.array(size), axis=-1)  # [ATTEMPTS]
        sides = jnp.where(jnp.any(fits), jnp.maximum(sides[jnp.argmax(fits)], 1), 0)  # [2]: height, width
        low = jax.random.randint(position_key, (2,), 0, jnp.array(size) - sides + 1)
        return box(size, low, low + sides)

    return jnp.any(jax.vmap(one_box)(jax.random.split(key, count)), axis=0)
