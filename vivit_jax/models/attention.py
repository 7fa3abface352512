"""The multi-head attention layer of Models 1 to 4 (eq. 2; section 3.3)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax import sharding
from vivit_jax.models.attention_backends import BACKENDS, attention_weights, target_device
from vivit_jax.models.attention_choice import Attention, choose_backend
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.dense import DenseParameters, dense_options, parallel_dense, stored

SOW_ONCE: dict[str, Any] = {"init_fn": lambda: None, "reduce_fn": lambda _, x: x}  # the value, not a tuple of values


def attention_backend(config: ViViTConfig, keys: int, training: bool, sow_attention: bool = False) -> str:
    """Returns the backend of an attention over this number of tokens on the device that is traced for."""
    dropout, cap = training and config.attention_dropout_rate > 0, config.attention_logit_cap is not None
    work = Attention(keys, config.head_dim, config.dtype, training or sow_attention, dropout, cap)
    return choose_backend(config.attention_backend, work, target_device())


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
      tokens: the length of the last token axis without padding (`Encoder`); None: there is none.
    """

    config: ViViTConfig
    axes: tuple[int, ...] = (-2,)
    deterministic: bool = True
    sow_attention: bool = False
    logical_axes: tuple[str | None, ...] = ()
    tokens: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., N, d], or [..., n_t, n_s, d] where `axes` includes time, to the same shape.

        With `sow_attention` the collection `intermediates` gets `weights`, or `weights_time` and `weights_space` where
        there are two axes: [..., heads, N_q, N_k], for time [..., n_s, heads, n_t, n_t]; `vivit_jax.models.relevance`
        reads the collections `relevance` and `perturbations`.
        """
        config = self.config
        options = dense_options(config)
        features = (config.num_heads, config.head_dim)
        layers = [DenseParameters(config, features, config.qkv_bias, name=name) for name in ("query", "key", "value")]
        # On GPUs one product would be followed by copies of its three parts.
        parts = [[layer] for layer in layers] if target_device().platform == "gpu" else [layers]
        q, k, v = (y for part in parts for y in parallel_dense(config, x, part))  # each [..., N, heads, head_dim]
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
        # are products of two arrays with the same sharding. (With different ones the product was wrong: jax 0.10.2.)
        q, k, v = (sharding.constrain(x, *input_axes) for x in (q, k, v))
        q, k, v = (sharding.constrain(x, *names) for x, names in ((q, query_axes), (k, key_axes), (v, key_axes)))
        # Head-major before the products: XLA's own choice of layout is up to twice as slow on CPUs.
        q, k, v = (jnp.moveaxis(x, axis - 1, -2) for x in (q, k, v))  # [..., heads, N, head_dim]
        if self.sow_attention:
            name = "weights" if len(self.axes) == 1 else {-3: "weights_time", -2: "weights_space"}[axis]
            weights = attention_weights(q, k, config.attention_logit_cap)
            self.sow("intermediates", name, weights, **SOW_ONCE)
            self.sow("relevance", f"qkv{axis}", (q, k, v), **SOW_ONCE)

        backend = attention_backend(config, k.shape[-2], not self.deterministic, self.sow_attention)
        options = {"dropout_rate": rate, "dropout_key": dropout_key, "logit_cap": config.attention_logit_cap}
        if axis == -2 and self.tokens is not None:
            options["tokens"] = self.tokens
        attend = functools.partial(BACKENDS[backend], **options)
        if backend != "xla" and dropout_key is None:
            # The partitioner would gather the axis that a loop runs over, and cannot split a kernel. With dropout it
            # has to gather: the masks depend on the index in the whole array, so that they do not depend on the mesh.
            for names in (query_axes, key_axes):
                names.insert(-1, names.pop(attended))
            attend = sharding.shard_map_logical(attend, (query_axes, key_axes, key_axes))
        out = attend(q, k, v)  # [..., heads, N, head_dim]
        if self.sow_attention:
            out = self.perturb(f"out{axis}", out)
        out = jnp.moveaxis(out, -2, axis - 1)  # [..., n_t, n_s, heads, head_dim]
        return sharding.constrain(out, *input_axes)
