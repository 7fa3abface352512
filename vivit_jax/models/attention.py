"""Scaled dot-product attention (eq. 7) and the ways to compute it; the multi-head layers of Models 1 to 4.

A backend is one function `(query, key, value, dropout_rate, dropout_key, logit_cap) -> out` on head-major arrays [...,
heads, N, head_dim], chosen by name from `BACKENDS`. All compute the same, softmax(Q K^T / sqrt(head_dim)) V, with the
softmax in float32 or wider, and all honour the cap on the logits and dropout on the attention weights (each with masks
of its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.models.config import ATTENTION_BACKENDS, ViViTConfig
from vivit_jax.models.dense import dense_options

Backend = Callable[[jax.Array, jax.Array, jax.Array, float, jax.Array | None, float | None], jax.Array]
QUERIES_PER_TILE = 256  # measured on CPUs: about the largest tile whose weights stay in cache


def attention_weights(query: jax.Array, key: jax.Array, logit_cap: float | None = None) -> jax.Array:
    """softmax(Q K^T / sqrt(head_dim)) of eq. 7, in float32 or wider.

    Args:
      query: [..., heads, N_q, head_dim].
      key: [..., heads, N_k, head_dim].
      logit_cap: c > 0 replaces the softmax's argument x by c tanh(x / c), which lies in (-c, c) and is about x where x
        is small; so do VideoPrism's models (arXiv:2402.13217). None for none.

    Returns:
      [..., heads, N_q, N_k]; each row sums to 1.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query / math.sqrt(query.shape[-1])
    logits = jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=wide)
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    return jax.nn.softmax(logits, axis=-1)


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Eq. 7 as two matrix products and a softmax, left to XLA. Keeps all the weights, N_q x N_k for each head.

    Args:
      query: [..., heads, N_q, head_dim].
      key: [..., heads, N_k, head_dim].
      value: [..., heads, N_k, head_dim].
      dropout_rate: in [0, 1): each weight is zeroed with this probability, the others divided by 1 - rate.
      dropout_key: None for no dropout.
      logit_cap: see `attention_weights`.

    Returns:
      [..., heads, N_q, head_dim], the dtype of `value`.
    """
    weights = attention_weights(query, key, logit_cap)
    if dropout_rate and dropout_key is not None:
        keep = 1.0 - dropout_rate
        weights = jnp.where(jax.random.bernoulli(dropout_key, keep, weights.shape), weights / keep, 0.0)
    return jnp.matmul(weights.astype(value.dtype), value)


def tiled_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Eq. 7 one head and at most `QUERIES_PER_TILE` queries at a time; the backward pass recomputes weights.

    Memory grows with N instead of N^2, and on CPUs a tile stays in cache. The compiler's cost analysis counts the
    body of a loop once: count FLOPs with `xla_attention`.

    Args and result as `xla_attention`.
    """
    *lead, n_q, head_dim = query.shape
    rows = math.prod(lead)
    tiles = -(-n_q // QUERIES_PER_TILE)
    tile = -(-n_q // tiles)

    @jax.checkpoint
    def one_tile(q: jax.Array, k: jax.Array, v: jax.Array, place: jax.Array) -> jax.Array:
        drop = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
        return xla_attention(q, k, v, dropout_rate, drop, logit_cap)

    def one_head(args: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, row = args
        return jax.lax.map(lambda x: one_tile(x[0], k, v, x[1]), (q, row * tiles + jnp.arange(tiles)))

    query = query.reshape(rows, n_q, head_dim)
    query = jnp.pad(query, ((0, 0), (0, tiles * tile - n_q), (0, 0))).reshape(rows, tiles, tile, head_dim)
    key, value = (x.reshape(rows, *x.shape[-2:]) for x in (key, value))
    out = jax.lax.map(one_head, (query, key, value, jnp.arange(rows)))  # [rows, tiles, tile, head_dim]
    return out.reshape(rows, tiles * tile, -1)[:, :n_q].reshape(*lead, n_q, -1)


BACKENDS: dict[str, Backend] = {"xla": xla_attention, "tiled": tiled_attention}
assert tuple(BACKENDS) == ATTENTION_BACKENDS


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (MSA of eq. 2; eq. 7 in each head), over one axis of the tokens or, Model 4,
    over two.

    Parameters: `query`, `key`, `value` with kernels (d, heads, head_dim), `out` with (heads, head_dim, d).

    Attributes:
      config: sizes, biases, cap on the logits, dropout, dtype and backend.
      axes: which axis each equal share of the heads attends over, -2 the last but one (the tokens of a
        sequence, or space), -3 the one before it (time). (-2,) is ordinary self-attention; (-3, -2) is Model
        4's: the first half of the heads over time, K_t and V_t in R^{n_t x d}, the second over space,
        concatenated in that order.
      deterministic: no dropout.
      sow_attention: also sow the weights, see `__call__`.
      places: what the axes between batch and d are to the mesh, see `Encoder`. Where the axis attended over is split,
        another takes its place for the while (one all-to-all there and one back), or where there is none each device
        keeps its own queries and gets all keys and values.
    """

    config: ViViTConfig
    axes: tuple[int, ...] = (-2,)
    deterministic: bool = True
    sow_attention: bool = False
    places: tuple[str | None, ...] = ()

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
        width = dense_options(config)
        project = dict(features=(config.num_heads, config.head_dim), use_bias=config.qkv_bias, **width)
        q, k, v = (nn.DenseGeneral(name=name, **project)(x).astype(config.dtype) for name in ("query", "key", "value"))
        share = config.num_heads // len(self.axes)
        parts = []
        for i, axis in enumerate(self.axes):
            heads = slice(i * share, (i + 1) * share)
            parts.append(self._attend(q[..., heads, :], k[..., heads, :], v[..., heads, :], axis))
        out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)  # [..., N, heads, head_dim]
        return nn.DenseGeneral(config.hidden_size, axis=(-2, -1), name="out", **width)(out).astype(config.dtype)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, axis: int) -> jax.Array:
        """One share of the heads over one axis; q, k, v and the result [..., n_t, n_s, heads, head_dim]."""
        config = self.config
        rate = 0.0 if self.deterministic else config.attention_dropout_rate
        dropout_key = self.make_rng("dropout") if rate else None
        places = list(self.places or (None,) * (q.ndim - 3))
        before, at = ("batch", *places, "heads", None), len(places) + 2 + axis
        if places[at - 1] == "time":  # the axis attended over: its devices take places of the frame instead
            places = [None if i == at - 1 else "space" for i in range(len(places))]
        of_query = ["batch", *places, "heads", None]
        of_keys = [None if i == at else name for i, name in enumerate(of_query)]
        # Laid as the layer's input first: so the way back ends there too, and the gradients of the kernels are products
        # of two arrays that lie alike. (Of two that do not, the partitioner's product was wrong: jax 0.10.2.)
        q, k, v = (sharding.constrain(x, *before) for x in (q, k, v))
        q, k, v = (sharding.constrain(x, *names) for x, names in ((q, of_query), (k, of_keys), (v, of_keys)))
        # Head-major before the products: XLA's own choice of layout is up to twice as slow on CPUs.
        q, k, v = (jnp.moveaxis(x, axis - 1, -2) for x in (q, k, v))  # [..., heads, N, head_dim]
        if self.sow_attention:
            name = "weights" if len(self.axes) == 1 else {-3: "weights_time", -2: "weights_space"}[axis]
            weights = attention_weights(q, k, config.attention_logit_cap)
            self.sow("intermediates", name, weights, init_fn=lambda: None, reduce_fn=lambda _, w: w)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return BACKENDS[config.attention_backend](q, k, v, rate, dropout_key, config.attention_logit_cap)

        if config.attention_backend != "xla" and dropout_key is None:
            # The partitioner would gather what a loop runs over. (With dropout it may: the masks are drawn by place in
            # the whole, so that they do not depend on the mesh.)
            for names in (of_query, of_keys):
                names.insert(-1, names.pop(at))
            attend = sharding.shard_map_logical(attend, (of_query, of_keys, of_keys), of_query)
        out = jnp.moveaxis(attend(q, k, v), -2, axis - 1)
        return sharding.constrain(out, *before)
