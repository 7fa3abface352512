"""Scaled dot-product attention (eq. 7) and the ways to compute it; the multi-head layers of Models 1 to 4.

A backend is one function `(query, key, value, dropout_rate, dropout_key) -> out`, chosen by name from
`BACKENDS`. All compute the same function, softmax(Q K^T / sqrt(head_dim)) V, in float32 softmax or wider, and
all honour dropout on the attention weights (each with masks of its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax.models.config import ATTENTION_BACKENDS, ViViTConfig

Backend = Callable[[jax.Array, jax.Array, jax.Array, float, jax.Array | None], jax.Array]
QUERIES_PER_TILE = 256  # measured on CPUs: the largest tile whose weights stay in the second-level cache


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """softmax(Q K^T / sqrt(head_dim)) of eq. 7, at least float32.

    Args:
      query: [..., N_q, heads, head_dim].
      key: [..., N_k, heads, head_dim].

    Returns:
      [..., heads, N_q, N_k]; each row sums to 1.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key, preferred_element_type=wide)
    return jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)


def _drop(weights: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Weights of any shape, each zeroed with probability `rate`, the others divided by 1 - rate."""
    if rate == 0.0 or key is None:
        return weights
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, weights.shape), weights / (1.0 - rate), 0.0)


def _mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Values [..., N_k, heads, head_dim] averaged by weights [..., heads, N_q, N_k]."""
    return jnp.einsum("...hqk,...khd->...qhd", weights.astype(value.dtype), value)


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Eq. 7 as two matrix products and a softmax, left to XLA. Keeps all the weights, N_q x N_k for each
    head.

    Args:
      query: [..., N_q, heads, head_dim].
      key: [..., N_k, heads, head_dim].
      value: [..., N_k, heads, head_dim].
      dropout_rate: in [0, 1), on the weights.
      dropout_key: None for no dropout.

    Returns:
      [..., N_q, heads, head_dim], the dtype of `value`.
    """
    return _mix(_drop(attention_weights(query, key), dropout_rate, dropout_key), value)


def tiled_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Eq. 7 one head and at most `QUERIES_PER_TILE` queries at a time; the backward pass recomputes each
    tile's weights.

    Memory grows with N instead of N^2, and on CPUs a tile stays in cache. The compiler's cost analysis counts
    the body of a loop once: count FLOPs with `xla_attention`.

    Args and result as `xla_attention`.
    """
    lead, (n_q, heads, head_dim) = query.shape[:-3], query.shape[-3:]
    rows = math.prod(lead) * heads
    tiles = -(-n_q // QUERIES_PER_TILE)
    tile = -(-n_q // tiles)

    def by_head(x: jax.Array) -> jax.Array:  # [..., N, heads, head_dim] -> [rows, N, head_dim]
        return jnp.moveaxis(x, -2, -3).reshape(rows, x.shape[-3], head_dim)

    padded = jnp.pad(by_head(query), ((0, 0), (0, tiles * tile - n_q), (0, 0)))

    @jax.checkpoint
    def one_tile(q: jax.Array, k: jax.Array, v: jax.Array, place: jax.Array) -> jax.Array:
        dropout = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
        q, k, v = (x[:, None, :] for x in (q, k, v))  # a single head
        return xla_attention(q, k, v, dropout_rate, dropout)[:, 0, :]

    def one_head(args: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, row = args
        places = row * tiles + jnp.arange(tiles)
        return jax.lax.map(lambda x: one_tile(x[0], k, v, x[1]), (q, places))

    tiled = padded.reshape(rows, tiles, tile, head_dim)
    out = jax.lax.map(one_head, (tiled, by_head(key), by_head(value), jnp.arange(rows)))
    out = out.reshape(rows, tiles * tile, head_dim)[:, :n_q].reshape(*lead, heads, n_q, head_dim)
    return jnp.moveaxis(out, -3, -2)


BACKENDS: dict[str, Backend] = {"xla": xla_attention, "tiled": tiled_attention}
assert tuple(BACKENDS) == ATTENTION_BACKENDS


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (MSA of eq. 2; eq. 7 in each head), over one axis of the tokens or, Model 4,
    over two.

    Parameters: `query`, `key`, `value` with kernels (d, heads, head_dim), `out` with (heads, head_dim, d).

    Attributes:
      config: sizes, biases, dropout, dtype and backend.
      axes: which axis each equal share of the heads attends over, -2 the last but one (the tokens of a
        sequence, or space), -3 the one before it (time). (-2,) is ordinary self-attention; (-3, -2) is Model
        4's: the first half of the heads over time, K_t and V_t in R^{n_t x d}, the second over space,
        concatenated in that order.
      deterministic: no dropout.
      sow_attention: also sow the weights, see `__call__`.
    """

    config: ViViTConfig
    axes: tuple[int, ...] = (-2,)
    deterministic: bool = True
    sow_attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attends.

        Args:
          x: [..., N, d], or [..., n_t, n_s, d] where `axes` names time.

        Returns:
          The same shape. With `sow_attention` the collection `intermediates` gets `weights`, or
          `weights_time` and `weights_space` where there are two axes: [..., heads, N_q, N_k], for time [...,
          n_s, heads, n_t, n_t].
        """
        config = self.config
        width = {
            "dtype": config.dtype,
            "param_dtype": _param_dtype(config),
            "kernel_init": nn.initializers.xavier_uniform(),
        }
        project = dict(features=(config.num_heads, config.head_dim), use_bias=config.qkv_bias, **width)
        q, k, v = (nn.DenseGeneral(name=name, **project)(x) for name in ("query", "key", "value"))
        shares = []
        for share, axis in enumerate(self.axes):
            heads = slice(share * config.num_heads // len(self.axes), (share + 1) * config.num_heads // len(self.axes))
            shares.append(self._attend(q[..., heads, :], k[..., heads, :], v[..., heads, :], axis))
        out = shares[0] if len(shares) == 1 else jnp.concatenate(shares, axis=-2)  # [..., N, heads, head_dim]
        return nn.DenseGeneral(config.hidden_size, axis=(-2, -1), name="out", **width)(out)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, axis: int) -> jax.Array:
        """One share of the heads over one axis; q, k, v and the result [..., n_t, n_s, heads, head_dim]."""
        rate = 0.0 if self.deterministic else self.config.attention_dropout_rate
        dropout_key = self.make_rng("dropout") if rate else None
        if axis == -3:
            q, k, v = (jnp.swapaxes(x, -3, -4) for x in (q, k, v))  # [..., n_s, n_t, heads, head_dim]
        if self.sow_attention:
            name = "weights" if len(self.axes) == 1 else {-3: "weights_time", -2: "weights_space"}[axis]
            self.sow("intermediates", name, attention_weights(q, k), init_fn=lambda: None, reduce_fn=lambda _, w: w)
        out = BACKENDS[self.config.attention_backend](q, k, v, rate, dropout_key)
        return jnp.swapaxes(out, -3, -4) if axis == -3 else out


def _param_dtype(config: ViViTConfig) -> str:
    """Parameters are float32, and float64 only where everything is."""
    return "float64" if config.dtype == "float64" else "float32"
