"""Mixtures of two clips and of their labels: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.augment.config import AugmentConfig
from vivit_jax.augment.draws import box, clip_keys


def mix_clips(
    key: jax.Array, video: jax.Array, mask: jax.Array, config: AugmentConfig
) -> tuple[jax.Array, jax.Array | None]:
    """Mixup or cutmix of each clip with its partner (`swap_pairs`), whichever is on, or drawn where both are.

    Lambda, the box, and which of the two it is, are drawn once for a batch, as published, or for each clip on its own
    with `mix_per_example`. A clip whose partner is padding stays whole.

    Args:
      key: of this step.
      video: float [B, T, H, W, 3], any range.
      mask: [B], 0 on padding.
      config: `mixup`, `cutmix`, `switch_probability`, `mix_per_example`.

    Returns:
      (the mixtures; float32 [B], the share of each clip's own label in [0, 1], for `mix`, which of cutmix is the share
      of the frame that is the clip's own). `(video, None)` where both are off.
    """
    if not config.mixes:
        return video, None
    if not (config.cutmix or config.mix_per_example):
        shares = mixup_weights(key, mask, config.mixup)
        return mix(video, shares), shares

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weight of the clip itself in each pixel of the frame, [H, W], and in the label."""
        which, lambda_key, box_key = jax.random.split(key, 3)
        if config.mixup and config.cutmix:
            cuts = jax.random.bernoulli(which, config.switch_probability)
            alpha = jnp.where(cuts, config.cutmix, config.mixup)
        else:
            cuts, alpha = jnp.asarray(bool(config.cutmix)), config.cutmix or config.mixup
        share = jax.random.beta(lambda_key, alpha, alpha)
        inside = cutmix_box(box_key, video.shape[2:4], share)
        return jnp.where(cuts, jnp.where(inside, 0.0, 1.0), share), jnp.where(cuts, jnp.mean(~inside), share)

    if config.mix_per_example:
        # Beta is drawn by rejection, in a loop: split over devices it would wait in each turn for all of them.
        weights, shares = sharding.shard_map_batch(jax.vmap(draw))(clip_keys(key, len(video)))
    else:
        weights, shares = (jnp.broadcast_to(drawn, (len(video), *drawn.shape)) for drawn in draw(key))
    paired = swap_pairs(mask) > 0
    weights = jnp.where(paired[:, None, None], weights, 1.0)
    return mix(video, weights[:, None, :, :, None]), jnp.where(paired, shares, 1.0)


def mixup_weights(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """The share of each clip in its own mixture: lambda ~ Beta(alpha, alpha), one draw for a batch.

    mixup (Zhang et al., arXiv:1710.09412), as scenic's `dataset_utils.mixup` draws it. A clip whose partner is padding
    stays whole: weight 1.

    Args:
      key: random key.
      mask: [B], 0 on padding.
      alpha: > 0.

    Returns:
      float32 [B] in [0, 1], for `mix`.
    """
    return jnp.where(swap_pairs(mask) > 0, jax.random.beta(key, alpha, alpha), 1.0)


def cutmix_box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """The box of cutmix that is the partner's (Yun et al., arXiv:1905.04899, section 3.1).

    Both sides are sqrt(1 - lambda) of the frame's, cut off to an even number of pixels as in the authors' code, around
    a centre that is uniform over the frame; what lies beyond the border is cut off, so that the area is at most
    1 - lambda of the frame.

    Args:
      key: of the centre.
      size: (H, W) of the frame.
      share: lambda in [0, 1].

    Returns:
      bool [H, W].
    """
    half = jnp.floor(jnp.array(size) * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, jnp.array(size))
    return box(size, centre - half, centre + half)


def mix(values: jax.Array, weights: jax.Array) -> jax.Array:
    """`w x + (1 - w) x'` with x' the partner's values.

    Args:
      values: float [B, ...], frames or targets.
      weights: in [0, 1], [B], or [B, ...] with as many dimensions as `values`, each as large or 1.
    """
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)).astype(values.dtype)
    return weights * values + (1 - weights) * swap_pairs(values)


def swap_pairs(values: jax.Array) -> jax.Array:
    """Partners change places along the first axis: 0 with 1, 2 with 3, and so on; the last of an odd number stays.

    The published code pairs the first clip of each device's batch with its last, the second with the last but one, and
    so on: other pairs on other meshes. Neighbours are as random, a batch being a random draw, and the same pairs on any
    mesh. Where each device has an even number of clips they share a device, and no pixels travel; else they do.
    """
    pairs, rest = divmod(values.shape[0], 2)
    swapped = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(-1, *values.shape[1:])
    return jnp.concatenate([swapped, values[-1:]]) if rest else swapped
