"""Scaled dot-product attention (section 3.3, eq. 7) in several implementations, the backends.

A backend is a function `(query, key, value, *, dropout_rate, dropout_key, logit_cap) -> out` on arrays [..., heads, N,
head_dim]. All compute softmax(Q K^T / sqrt(head_dim)) V with the softmax in float32 or wider. Those that are not given
a dropout rate or a logit cap by `choose_backend` do without it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vivit_jax.models.attention_choice import Device
from vivit_jax.models.dense import stored

QUERIES_PER_TILE = 256  # measured on CPUs: about the largest tile whose weights stay in cache
CUDNN_IMPLEMENTATION = "cudnn"  # tests replace it by 'xla', which has the same padding
SPLASH_INTERPRET = False  # run the TPU kernel in Pallas' interpreter: for tests
FLOAT32_KERNELS = ("TPU v2", "TPU v3")
SPLASH_MAX_BLOCK = 640  # tokens; a tile of float32 logits takes 1.6 MiB of VMEM


def target_device() -> Device:
    """Returns the device that is traced for: that of the current mesh, otherwise jax's default backend."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = device.platform if device else jax.default_backend()
    try:
        attached = jax.devices(platform)[0]
    except RuntimeError:  # compilation ahead of time
        attached = None
    kind = device.device_kind if device else attached.device_kind
    capability = getattr(attached, "compute_capability", None) if platform == "gpu" else None
    return Device(platform, kind, capability, jax.__version_info__)


def attention_weights(query: jax.Array, key: jax.Array, logit_cap: float | None = None) -> jax.Array:
    """Returns softmax(Q K^T / sqrt(head_dim)) of eq. 7, [..., heads, N_q, N_k], in float32 or wider.

    `logit_cap` c > 0 replaces each logit x by c tanh(x / c).
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = _logits(query / math.sqrt(query.shape[-1]), key, wide)  # [..., heads, N_q, N_k]
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    return jax.nn.softmax(logits, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _logits(query: jax.Array, key: jax.Array, dtype: Any) -> jax.Array:
    """Returns Q K^T in `dtype`; on GPUs the gradients' products have factors of the dtype of Q and K."""
    return jnp.matmul(query, jnp.swapaxes(key, -1, -2), preferred_element_type=dtype)


def _logits_gradients(dtype: Any, qk: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, key = qk
    if target_device().platform == "gpu":  # less memory traffic; on TPUs no less, and the copy would take memory
        gradient = gradient.astype(query.dtype)
    products = jnp.matmul(gradient, key), jnp.matmul(jnp.swapaxes(gradient, -1, -2), query)
    return products[0].astype(query.dtype), products[1].astype(key.dtype)


_logits.defvjp(lambda query, key, dtype: (_logits(query, key, dtype), (query, key)), _logits_gradients)


def xla_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    logit_cap: float | None = None,
) -> jax.Array:
    """Computes eq. 7 as two matrix products and a softmax; stores all N_q x N_k weights of each head.

    The query is [..., heads, N_q, head_dim], the others [..., heads, N_k, head_dim], the result like the query in the
    dtype of `value`. `dropout_rate`: probability in [0, 1) of dropping a weight; the others are divided by 1 - rate.
    """
    weights = attention_weights(query, key, logit_cap)  # [..., heads, N_q, N_k]
    if dropout_rate and dropout_key is not None:
        keep = 1.0 - dropout_rate
        weights = jnp.where(jax.random.bernoulli(dropout_key, keep, weights.shape), weights / keep, 0.0)
    return jnp.matmul(weights.astype(value.dtype), value)


def tiled_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, dropout_key: jax.Array | None = None, **options: Any
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
        return xla_attention(q, k, v, dropout_key=tile_key, **options)

    def one_head(args: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, row = args
        return jax.lax.map(lambda x: one_tile(x[0], k, v, x[1]), (q, row * tiles + jnp.arange(tiles)))

    query = pad_tokens(query.reshape(rows, n_q, head_dim), tiles * tile).reshape(rows, tiles, tile, head_dim)
    key, value = (x.reshape(rows, *x.shape[-2:]) for x in (key, value))  # [rows, N_k, head_dim]
    out = jax.lax.map(one_head, (query, key, value, jnp.arange(rows)))  # [rows, tiles, tile, head_dim]
    return stored(out.reshape(rows, tiles * tile, -1)[:, :n_q].reshape(*lead, n_q, -1), "attention")


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, tokens: int | None = None, **_: Any
) -> jax.Array:
    """Computes eq. 7 with cuDNN's fused attention, without dropout and logit cap; see `xla_attention`.

    For NVIDIA GPUs, in bfloat16. Memory grows with N. With gradients jax refuses odd lengths: they are padded, and keys
    of padding are masked. A caller that has padded gives the number of `tokens` without padding.
    """
    n_q, n_k = query.shape[-2], tokens or key.shape[-2]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))  # [B, heads, N, head_dim]
    q, k, v = (pad_tokens(x, x.shape[-2] + x.shape[-2] % 2).swapaxes(1, 2) for x in (q, k, v))
    lengths = {}
    if k.shape[1] > n_k:
        sizes = {"query_seq_lengths": q.shape[1], "key_value_seq_lengths": n_k}
        lengths = {name: jnp.full(q.shape[0], size, jnp.int32) for name, size in sizes.items()}
    out = jax.nn.dot_product_attention(q, k, v, **lengths, implementation=CUDNN_IMPLEMENTATION)
    return out.swapaxes(1, 2)[:, :, :n_q].reshape(query.shape)


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, logit_cap: Any = None, tokens: int | None = None, **_: Any
) -> jax.Array:
    """Computes eq. 7 with JAX's splash attention kernel for TPUs, without dropout; see `xla_attention`.

    Memory grows with N. Lengths are padded to whole blocks, with keys that segment ids mask; `tokens`: see
    `cudnn_attention`. TPU v2 and v3, whose matrix units take no bfloat16 operands from a kernel, get float32 operands.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    *lead, heads, n_q, head_dim = query.shape
    n_k, dtype = tokens or key.shape[-2], value.dtype
    (block_q, padded_q), (block_k, padded_k) = _blocks(n_q), _blocks(key.shape[-2])
    operands = "float32" if target_device().kind in FLOAT32_KERNELS else dtype
    q, k, v = (
        pad_tokens(x.reshape(-1, *x.shape[-3:]).astype(operands), padded)
        for x, padded in ((query / math.sqrt(head_dim), padded_q), (key, padded_k), (value, padded_k))
    )
    sizes = {f"block_q{part}": block_q for part in ("", "_dkv", "_dq")}  # forward and both backward kernels
    sizes |= {f"block_kv{part}": block_k for part in ("", "_dkv", "_dq")}
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((padded_q, padded_k))] * heads),
        block_sizes=splash.BlockSizes(**sizes),
        attn_logits_soft_cap=logit_cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=SPLASH_INTERPRET,
    )
    # Queries of padding attend to the real keys too, so that no row is without a key; they are cut off.
    segments = splash.SegmentIds(q=jnp.zeros(padded_q, jnp.int32), kv=(jnp.arange(padded_k) >= n_k).astype(jnp.int32))
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
    return out[..., :n_q, :].astype(dtype).reshape(*lead, heads, n_q, head_dim)


def pad_tokens(x: jax.Array, length: int) -> jax.Array:
    """Pads the tokens of [..., N, head_dim] with zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, length - x.shape[-2]), (0, 0)])


def _blocks(length: int) -> tuple[int, int]:
    """Returns (tokens in a block of the TPU kernel, a multiple of 128; the length padded to whole blocks)."""
    count = -(-length // SPLASH_MAX_BLOCK)
    block = -(-length // (128 * count)) * 128
    return block, count * block


BACKENDS = {"xla": xla_attention, "tiled": tiled_attention, "cudnn": cudnn_attention, "splash": splash_attention}
