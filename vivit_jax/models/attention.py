"""Scaled dot-product attention (section 3.3, eq. 7), its backends, and the multi-head layer of Models 1 to 4.

A backend is a function `(query, key, value, dropout_rate, dropout_key, logit_cap) -> out` on arrays [..., heads, N,
head_dim]. All backends compute softmax(Q K^T / sqrt(head_dim)) V with the softmax in float32 or wider, and apply the
logit cap and attention dropout (each backend draws its own masks).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.models.config import ATTENTION_BACKENDS, ViViTConfig
from vivit_jax.models.dense import dense_options, stored

Backend = Callable[[jax.Array, jax.Array, jax.Array, float, jax.Array | None, float | None], jax.Array]
QUERIES_PER_TILE = 256  # measured on CPUs: about the largest tile whose weights stay in cache


def attention_weights(query: jax.Array, key: jax.Array, logit_cap: float | None = None) -> jax.Array:
    """Returns softmax(Q K^T / sqrt(head_dim)) of eq. 7, [..., heads, N_q, N_k], in float32 or wider.

    Args:
      query, key: [..., heads, N_q, head_dim] and [..., heads, N_k, head_dim].
      logit_cap: c > 0 replaces each logit x by c tanh(x / c), as in VideoPrism (arXiv:2402.13217).
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query / math.sqrt(query.shape[-1])
    logits = jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=wide)  # [..., heads, N_q, N_k]
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
    """Computes eq. 7 as two matrix products and a softmax; stores all N_q x N_k weights of each head.

    Args:
      query, key, value: [..., heads, N, head_dim], N = N_q for the query and N_k for the others.
      dropout_rate: probability in [0, 1) of dropping a weight; the others are divided by 1 - rate.
      dropout_key, logit_cap: None for no dropout; see `attention_weights`.

    Returns:
      [..., heads, N_q, head_dim] in the dtype of `value`.
    """
    weights = attention_weights(query, key, logit_cap)  # [..., heads, N_q, N_k]
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
    """Computes eq. 7 for one head and at most `QUERIES_PER_TILE` queries at a time; see `xla_attention`.

    Memory grows with N instead of N^2: the backward pass recomputes the weights of each tile. On CPUs a tile stays in
    cache. The compiler's cost analysis counts the body of a loop once: count FLOPs with `xla_attention`.
    """
    *lead, n_q, head_dim = query.shape
    rows = math.prod(lead)
    tiles = -(-n_q // QUERIES_PER_TILE)
    tile = -(-n_q // tiles)

    @jax.checkpoint
    def one_tile(q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array) -> jax.Array:
        tile_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return xla_attention(q, k, v, dropout_rate, tile_key, logit_cap)

    def one_head(args: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, row = args
        return jax.lax.map(lambda x: one_tile(x[0], k, v, x[1]), (q, row * tiles + jnp.arange(tiles)))

    query = query.reshape(rows, n_q, head_dim)
    query = jnp.pad(query, ((0, 0), (0, tiles * tile - n_q), (0, 0))).reshape(rows, tiles, tile, head_dim)
    key, value = (x.reshape(rows, *x.shape[-2:]) for x in (key, value))  # [rows, N_k, head_dim]
    out = jax.lax.map(one_head, (query, key, value, jnp.arange(rows)))  # [rows, tiles, tile, head_dim]
    return stored(out.reshape(rows, tiles * tile, -1)[:, :n_q].reshape(*lead, n_q, -1), "attention")


BACKENDS: dict[str, Backend] = {"xla": xla_attention, "tiled": tiled_attention}
assert tuple(BACKENDS) == ATTENTION_BACKENDS


class MultiHeadAttention(nn.Module):
    """Section 3.1, MSA of eq. 2, and section 3.3, Model 4: multi-head self-attention over one or two token axes.

    Parameters: `query`, `key`, `value` with kernels (d, heads, head_dim), `out` with (heads, head_dim, d).

    Attributes:
      axes: the axis that each equal part of the heads attends over: -2, the last token axis (a sequence, or space), or
        -3, the one before it (time). (-2,) is ordinary self-attention. (-3, -2) is Model 4: the first half of the heads
        attends over time, the second over space, concatenated in this order.
      deterministic: disables dropout.
      logical_axes: of the token axes, see `Encoder`. A mesh axis that splits the axis attended over splits the other
        token axis during attention (one all-to-all before and one after); where there is no other, each device keeps
        its queries and gathers all keys and values.
    """

    config: ViViTConfig
    axes: tuple[int, ...] = (-2,)
    deterministic: bool = True
    sow_attention: bool = False
    logical_axes: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., N, d], or [..., n_t, n_s, d] where `axes` includes time, to the same shape.

        With `sow_attention` the collection `intermediates` gets `weights`, or `weights_time` and `weights_space` where
        there are two axes: [..., heads, N_q, N_k], for time [..., n_s, heads, n_t, n_t].
        """
        config = self.config
        options = dense_options(config)
        project = dict(features=(config.num_heads, config.head_dim), use_bias=config.qkv_bias, **options)
        # Each [..., N, heads, head_dim].
        names = ("query", "key", "value")
        q, k, v = (stored(nn.DenseGeneral(name=name, **project)(x).astype(config.dtype)) for name in names)
        heads_per_axis = config.num_heads // len(self.axes)
        outs = []
        for i, axis in enumerate(self.axes):
            heads = slice(i * heads_per_axis, (i + 1) * heads_per_axis)
            outs.append(self._attend(q[..., heads, :], k[..., heads, :], v[..., heads, :], axis))
        out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=-2)  # [..., N, heads, head_dim]
        out = nn.DenseGeneral(config.hidden_size, axis=(-2, -1), name="out", **options)(out)
        return stored(out.astype(config.dtype))

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, axis: int) -> jax.Array:
        """Attends over one token axis with some of the heads: [..., n_t, n_s, heads, head_dim] -> the same shape."""
        config = self.config
        rate = 0.0 if self.deterministic else config.attention_dropout_rate
        dropout_key = self.make_rng("dropout") if rate else None
        token_axes = list(self.logical_axes or (None,) * (q.ndim - 3))
        input_axes, attended = ("batch", *token_axes, "heads", None), len(token_axes) + 2 + axis
        if token_axes[attended - 1] == "time":  # split space instead of time
            token_axes = [None if i == attended - 1 else "space" for i in range(len(token_axes))]
        query_axes = ["batch", *token_axes, "heads", None]
        key_axes = [None if i == attended else name for i, name in enumerate(query_axes)]
        # Constrain to the input's sharding first, so that the backward pass ends in it and the gradients of the kernels
        # are products of two arrays with the same sharding. (With different ones the partitioner's product was wrong:
        # jax 0.10.2.)
        q, k, v = (sharding.constrain(x, *input_axes) for x in (q, k, v))
        q, k, v = (sharding.constrain(x, *names) for x, names in ((q, query_axes), (k, key_axes), (v, key_axes)))
        # Head-major before the products: XLA's own choice of layout is up to twice as slow on CPUs.
        q, k, v = (jnp.moveaxis(x, axis - 1, -2) for x in (q, k, v))  # [..., heads, N, head_dim]
        if self.sow_attention:
            name = "weights" if len(self.axes) == 1 else {-3: "weights_time", -2: "weights_space"}[axis]
            weights = attention_weights(q, k, config.attention_logit_cap)
            self.sow("intermediates", name, weights, init_fn=lambda: None, reduce_fn=lambda _, w: w)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return BACKENDS[config.attention_backend](q, k, v, rate, dropout_key, config.attention_logit_cap)

        if config.attention_backend != "xla" and dropout_key is None:
            # The partitioner would gather the axis that a loop runs over. With dropout it has to: the masks depend on
            # the index in the whole array, so that they do not depend on the mesh.
            for names in (query_axes, key_axes):
                names.insert(-1, names.pop(attended))
            attend = sharding.shard_map_logical(attend, (query_axes, key_axes, key_axes), query_axes)
        out = jnp.moveaxis(attend(q, k, v), -2, axis - 1)  # [..., n_t, n_s, heads, head_dim]
        return sharding.constrain(out, *input_axes)
