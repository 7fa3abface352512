"""Mixtures of two clips and of their labels: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899)."""

import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.augment.config import AugmentConfig
from vivit_jax.augment.erasing import box, clip_keys


def mix_clips(
    key: jax.Array, video: jax.Array, mask: jax.Array, config: AugmentConfig
) -> tuple[jax.Array, jax.Array | None]:
    """Mixes each clip with its partner (`swap_pairs`) by mixup or cutmix; if both are on, one of them is drawn.

    `video` is float [B, T, H, W, 3]. A clip whose partner is padding (0 in `mask`, [B]) is not mixed.

    Returns:
      (mixed video; float32 [B] in [0, 1], the weight of each clip's own label for `mix`: lambda for mixup, for cutmix
      the share of the frame outside the box), or `(video, None)` if both are off.
    """
    if not config.mixes:
        return video, None
    if not (config.cutmix or config.mix_per_example):
        shares = mixup_weights(key, mask, config.mixup)
        return mix(video, shares), shares

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws the weight of the clip itself in each pixel, [H, W], and in the label, []."""
        choice_key, lambda_key, box_key = jax.random.split(key, 3)
        if config.mixup and config.cutmix:
            cuts = jax.random.bernoulli(choice_key, 0.5)
            alpha = jnp.where(cuts, config.cutmix, config.mixup)
        else:
            cuts, alpha = jnp.asarray(bool(config.cutmix)), config.cutmix or config.mixup
        share = jax.random.beta(lambda_key, alpha, alpha)
        inside = cutmix_box(box_key, video.shape[2:4], share)
        return jnp.where(cuts, jnp.where(inside, 0.0, 1.0), share), jnp.where(cuts, jnp.mean(~inside), share)

    if config.mix_per_example:
        # Beta is drawn by rejection in a loop, which would synchronise all devices in each iteration.
        weights, shares = sharding.shard_map_batch(jax.vmap(draw))(clip_keys(key, len(video)))
    else:
        weights, shares = (jnp.broadcast_to(x, (len(video), *x.shape)) for x in draw(key))
    paired = swap_pairs(mask) > 0
    weights = jnp.where(paired[:, None, None], weights, 1.0)
    return mix(video, weights[:, None, :, :, None]), jnp.where(paired, shares, 1.0)


def mixup_weights(key: jax.Array, mask: jax.Array, alpha: float) -> jax.Array:
    """Draws the weight of each clip in its mixture, [B]: lambda ~ Beta(alpha, alpha), one draw per batch.

    As in scenic's `dataset_utils.mixup`. A clip whose partner is padding (0 in `mask`) gets 1.
    """
    return jnp.where(swap_pairs(mask) > 0, jax.random.beta(key, alpha, alpha), 1.0)


def cutmix_box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """Draws the box of cutmix that shows the partner, bool [H, W] (Yun et al., arXiv:1905.04899, section 3.1).

    Its sides are those of the frame times sqrt(1 - lambda), rounded down to an even number of pixels as in the authors'
    code. Its centre is uniform over the frame. The part outside the frame is cut off, so the box covers at most
    1 - lambda of the frame. `share` is lambda, in [0, 1].
    """
    half = jnp.floor(jnp.array(size) * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (2,), 0, jnp.array(size))
    return box(size, centre - half, centre + half)


def mix(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns w x + (1 - w) x' of `values` x, float [B, ...], and the partner's, x'; `weights` [B] or [B, ...]."""
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim)).astype(values.dtype)
    return weights * values + (1 - weights) * swap_pairs(values)


def swap_pairs(values: jax.Array) -> jax.Array:
    """Swaps neighbours along the first axis, 0 with 1, 2 with 3, and so on; the last of an odd number stays.

    The published code pairs the first clip of each device's batch with its last, the second with the last but one, and
    so on: the pairs depend on the mesh. Neighbours in the global batch are as random, and the same on any mesh. Where
    each device has an even number of clips, no pixels move between devices.
    """
    pairs, rest = divmod(values.shape[0], 2)
    swapped = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(-1, *values.shape[1:])
    return jnp.concatenate([swapped, values[-1:]]) if rest else swapped
