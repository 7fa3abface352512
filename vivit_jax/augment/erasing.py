"""Random erasing (Zhong et al., arXiv:1708.04896) of clips: boxes of the frame, the same in all frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vivit_jax.augment.draws import box

FILLS = ("zero", "mean", "noise")
# Boxes drawn, of which the first that fits into the frame is taken. The published algorithm draws until one fits, which
# is no program of fixed length; with its settings one draw in 30 does not fit, so ten on end never.
ATTEMPTS = 10


def erase(
    keys: jax.Array,
    video: jax.Array,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: float,
    count: int = 1,
    fill: str = "noise",
) -> jax.Array:
    """Erases boxes of some clips.

    Args:
      keys: [B] random keys, one a clip.
      video: [B, T, H, W, 3] in [0, 255], uint8 or float.
      probability: in [0, 1], of a clip.
      area, aspect, count: of `erase_boxes`.
      fill: 'zero', black; 'mean', the clip's mean colour; 'noise', uniform in [0, 255] for each pixel and channel (the
        paper's best). Noise too is the same in all frames, so that it adds no motion.

    Returns:
      Same shape and dtype.

    Raises:
      ValueError: an unknown fill.
    """
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r}; choose one of {', '.join(FILLS)}")

    def one_clip(key: jax.Array, clip: jax.Array) -> jax.Array:
        whether, where, values = jax.random.split(key, 3)
        erased = erase_boxes(where, clip.shape[1:3], area, aspect, count)
        erased &= jax.random.uniform(whether) < probability
        if fill == "zero":
            filling = jnp.zeros(3)
        elif fill == "mean":
            filling = jnp.mean(clip.astype(jnp.float32), axis=(0, 1, 2))
            filling = jnp.round(filling) if jnp.issubdtype(clip.dtype, jnp.integer) else filling
        else:
            filling = jax.random.bits(values, clip.shape[1:], jnp.uint8)
        return jnp.where(erased[..., None], filling.astype(clip.dtype), clip)

    return jax.vmap(one_clip)(keys, video)


def erase_boxes(
    key: jax.Array, size: tuple[int, int], area: tuple[float, float], aspect: float, count: int
) -> jax.Array:
    """Which pixels of a frame are erased: algorithm 1 of the paper, `count` times.

    Of each box, area and place are uniform, the latter over those where it lies in the frame, and the ratio of height
    to width is log-uniform, so that tall and wide are alike probable (as in timm and torchvision; the paper's is
    uniform, for which tall boxes are the more frequent). A frame into which none of `ATTEMPTS` boxes fits keeps its
    pixels.

    Args:
      key: of the clip.
      size: (H, W) of the frame.
      area: (low, high), shares of the frame that all boxes together take; they may overlap. (0.02, 0.4) in the paper.
      aspect: the ratio lies in [aspect, 1 / aspect]; 0.3 in the paper.
      count: of the boxes.

    Returns:
      bool [H, W].
    """

    def one_box(key: jax.Array) -> jax.Array:
        areas, ratios, place = jax.random.split(key, 3)
        pixels = jax.random.uniform(areas, (ATTEMPTS,), minval=area[0], maxval=area[1]) * (size[0] * size[1] / count)
        ratio = jnp.exp(jnp.log(aspect) * jax.random.uniform(ratios, (ATTEMPTS,), minval=-1.0, maxval=1.0))
        sides = jnp.round(jnp.sqrt(jnp.stack([pixels * ratio, pixels / ratio], axis=-1))).astype(jnp.int32)
        fits = jnp.all(sides <= jnp.array(size), axis=-1)
        sides = jnp.where(jnp.any(fits), jnp.maximum(sides[jnp.argmax(fits)], 1), 0)
        low = jax.random.randint(place, (2,), 0, jnp.array(size) - sides + 1)
        return box(size, low, low + sides)

    return jnp.any(jax.vmap(one_box)(jax.random.split(key, count)), axis=0)
