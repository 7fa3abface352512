"""The encoder blocks of section 3.3, their parts, and the encoder that stacks them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from vivit_jax import sharding
from vivit_jax.models.attention import SOW_ONCE, MultiHeadAttention, attention_backend
from vivit_jax.models.attention_backends import FLOAT32_KERNELS, pad_tokens, target_device
from vivit_jax.models.config import AUTO, ViViTConfig
from vivit_jax.models.dense import STORED, dense_options, stored

# Kernels of fused attention: they return what their backward pass needs (output and row sums), and must not run twice.
_FUSED = ("pallas_call", "dot_product_attention_fwd")


def _stored(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `remat="dots"`: stores the outputs of dense layers and of fused attention, recomputes the rest.

    By name, not as `dots_with_no_batch_dims_saveable`, which would also store the weights of tiled attention.
    """
    return params.get("name") in STORED if primitive.name == "name" else primitive.name.startswith(_FUSED)


_REMAT_POLICIES = {"dots": _stored, "full": jax.checkpoint_policies.nothing_saveable}


def layer_norm(config: ViViTConfig, name: str, dtype: str | None = None) -> nn.LayerNorm:
    """Returns a LayerNorm over d in `dtype` (default: `config.dtype`), with statistics in float32 or wider."""
    dtypes = {"dtype": dtype or config.dtype, "param_dtype": config.param_dtype}
    return nn.LayerNorm(epsilon=config.layer_norm_eps, name=name, **dtypes)


def _gelu(x: jax.Array, approximate: bool) -> jax.Array:
    # XLA for CPUs would convert to bfloat16 and back between the operations: slower, and less exact.
    wide = jnp.promote_types(x.dtype, jnp.float32) if target_device().platform == "cpu" else x.dtype
    return nn.gelu(x.astype(wide), approximate=approximate).astype(x.dtype)


def stochastic_depth_rates(rate: float, num_layers: int) -> np.ndarray:
    """Returns the drop rate of layer i, rate * i / (L - 1), float32 [L] (arXiv:1603.09382, section 3); 0 if L is 1."""
    return (rate * np.arange(num_layers) / max(num_layers - 1, 1)).astype(np.float32)


class StochasticDepth(nn.Module):
    """Table 4, stochastic depth (Huang et al., arXiv:1603.09382): drops a residual branch for whole examples.

    An example is a clip: in Model 2 all frames of a clip keep or drop a branch together. `rescale` divides kept
    branches by the probability of keeping them, so that the expectation does not change.
    """

    rescale: bool
    deterministic: bool

    @nn.compact
    def __call__(self, branch: jax.Array, rate: jax.Array | None) -> jax.Array:
        """Sets each of the B examples of `branch` [B, ...] to 0 with probability `rate`, a scalar in [0, 1) or None."""
        if self.deterministic or rate is None:
            return branch
        keep = 1.0 - rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape).astype(branch.dtype)  # [B, 1, ..., 1]
        return branch * (kept / keep.astype(branch.dtype) if self.rescale else kept)


class MlpBlock(nn.Module):
    """Section 3.1, MLP of eq. 3: dense to `mlp_dim`, GELU, dense to d, with dropout after GELU and at the end.

    Parameters: `dense_in`, `dense_out`; kernels xavier-uniform, biases N(0, 1e-6). `logical_axes`: see `Encoder`.
    """

    config: ViViTConfig
    deterministic: bool = True
    logical_axes: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., d] to the same shape."""
        config = self.config
        options = {**dense_options(config), "bias_init": nn.initializers.normal(stddev=1e-6)}
        shape, axes = x.shape, ("batch", *(self.logical_axes or (None,) * (x.ndim - 2)))
        if all(name is None or sharding.num_shards(name) == 1 for name in self.logical_axes):
            # One axis for all tokens: twice as fast gradients of dense layers on CPUs. Not where devices split both the
            # batch and the tokens: the merged axis would have to be gathered.
            x, axes = x.reshape(-1, shape[-1]), ("batch",)
        x = stored(nn.Dense(config.mlp_dim, name="dense_in", **options)(x).astype(config.dtype))  # [tokens, mlp_dim]
        x = sharding.constrain(x, *axes, "mlp")
        gelu = functools.partial(_gelu, approximate=config.activation == "gelu_tanh")
        # The gradient from x again, where XLA would store a second array of this size, the derivative.
        x = gelu(x) if config.remat in _REMAT_POLICIES else jax.checkpoint(gelu)(x)
        x = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x)
        x = stored(nn.Dense(config.hidden_size, name="dense_out", **options)(x).astype(config.dtype))  # [tokens, d]
        return nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x).reshape(shape)  # [B, ..., d]


class EncoderBlock(nn.Module):
    """Section 3.3, the transformer layer of Models 1 to 4: y = x + MSA(LN(x)) (eq. 2), z = y + MLP(LN(y)) (eq. 3).

    `config.attention` decides on the attention layers:

    * Models 1 and 2: one, over all tokens of a sequence (`norm_attention`, `attention`).
    * Model 3, `factorised_self_attention` (figure 5, eqs. 4 to 6): one over time (`norm_time`, `attention_time`) and
      one over space (`norm_space`, `attention_space`), each with LayerNorm and residual, in `config.attention_order`.
    * Model 4, `factorised_dot_product` (figure 6): one, with half of its heads over time, half over space (same names).

    The other parameters are `norm_mlp` and `mlp`. The residual stream keeps the dtype of the input. `sow_attention`:
    see `MultiHeadAttention`; `logical_axes`: see `Encoder`.
    """

    config: ViViTConfig
    deterministic: bool = True
    sow_attention: bool = False
    logical_axes: tuple[str | None, ...] = ()
    tokens: int | None = None  # see `MultiHeadAttention`

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | None) -> tuple[jax.Array, None]:
        """Maps [B, ..., N, d] (Models 1, 2) or [B, n_t, n_s, d] (Models 3, 4) to the same shape.

        `drop_rate` is the layer's stochastic depth rate, a scalar or None. `nn.scan` needs the second result, None.
        """
        config, logical_axes, options = self.config, self.logical_axes, (self.deterministic, self.sow_attention)
        for axes, name, norm in attention_layers(config):
            y = layer_norm(config, norm)(x)
            y = MultiHeadAttention(config, axes, *options, logical_axes, self.tokens, name=name)(y)
            y = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(y)
            x = self._add(x, y, drop_rate)  # eq. 2, and eqs. 4 and 5 of Model 3
        y = layer_norm(config, "norm_mlp")(x)
        y = MlpBlock(config, self.deterministic, logical_axes, name="mlp")(y)
        return self._add(x, y, drop_rate), None  # eq. 3, and eq. 6 of Model 3

    def _add(self, x: jax.Array, branch: jax.Array, drop_rate: jax.Array | None) -> jax.Array:
        """Adds a residual branch, or drops it."""
        branch = StochasticDepth(self.config.stochastic_depth_rescale, self.deterministic)(branch, drop_rate)
        return _constrain(x + branch.astype(x.dtype), self.logical_axes)


def _constrain(x: jax.Array, logical_axes: tuple[str | None, ...]) -> jax.Array:
    """Constrains tokens [B, ..., d] to the sharding of their token axes; () is all unsplit."""
    return sharding.constrain(x, "batch", *(logical_axes or (None,) * (x.ndim - 2)), None)


def attention_layers(config: ViViTConfig) -> Sequence[tuple[tuple[int, ...], str, str]]:
    """The attention layers of one block in their order: (axes, their name, that of the LayerNorm before)."""
    if config.attention == "factorised_self_attention":
        order = config.attention_order.split("_")
        return [((-3,) if axis == "time" else (-2,), f"attention_{axis}", f"norm_{axis}") for axis in order]
    axes = (-3, -2) if config.attention == "factorised_dot_product" else (-2,)
    return [(axes, "attention", "norm_attention")]


def initial_positions(config: ViViTConfig, times: int) -> nn.initializers.Initializer:
    """Returns an initialiser of positions (P, d): N(0, 0.02) plus a vector N(0, `temporal_position_std`) for each time.

    The last `times` x (P // `times`) are the tokens' positions, time by time; one before them is the class token's.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: str) -> jax.Array:
        positions = nn.initializers.normal(stddev=0.02)(key, shape, dtype)
        if times < 2 or not config.temporal_position_std:
            return positions
        of_times = jax.random.normal(jax.random.fold_in(key, 1), (times, shape[1]), dtype)
        added = jnp.repeat(config.temporal_position_std * of_times, shape[0] // times, axis=0)
        return positions.at[-len(added) :].add(added)

    return init


class Encoder(nn.Module):
    """Section 3.1, transformer encoder (eqs. 1 to 3): class token, position embedding, L blocks, final LayerNorm.

    Parameters: `class_token` (d,), zero, if there is one; `position_embedding` (positions, d), `initial_positions`, the
    first for the class token; `layers`, the blocks' parameters stacked as [L, ...], scanned or not; `norm`.

    `logical_axes` has the logical axis (`vivit_jax.sharding.constrain`) of each axis between batch and d, `tokens`,
    `time` or `space`, which the mesh may split; None for an axis that stays unsplit, () for all of them.
    """

    config: ViViTConfig
    num_layers: int
    class_token: bool  # whether to prepend one along the last token axis
    token_axes: int = 1  # number of token axes that have positions: 1 (a sequence) or 2 (time, space)
    times: int = 1  # n_t where the positions are those of several times, 1 where they are places alone
    deterministic: bool = True  # disables dropout and stochastic depth
    sow_attention: bool = False
    logical_axes: tuple[str | None, ...] = ()
    remat: str | None = None  # what the backward pass recomputes; None: `config.remat`

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Maps [B, ..., N, d], or [B, n_t, n_s, d] with `token_axes=2`, to the same shape; N + 1 with a class token.

        `kept`, int [B, ..., M], are indices of the last token axis: the layers see only these of its N tokens, and the
        result is [B, ..., M, d]. Its axes between B and M may have length 1: the same tokens everywhere along them.
        """
        config = self.config
        wide = config.param_dtype
        x = _constrain(x, self.logical_axes)  # [B, ..., N, d]
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros_init(), (config.hidden_size,), wide)
            token = jnp.broadcast_to(token.astype(x.dtype), (*x.shape[:-2], 1, config.hidden_size))
            x = jnp.concatenate([token, x], axis=-2)  # [B, ..., 1 + N, d]
        grid_shape = x.shape[-1 - self.token_axes : -1]
        shape = (math.prod(grid_shape), config.hidden_size)
        position = self.param("position_embedding", initial_positions(config, self.times), shape, wide)
        x = x + position.astype(x.dtype).reshape(*grid_shape, config.hidden_size)  # eq. 1
        if kept is not None:  # and the class token
            kept = jnp.pad(kept + 1, [(0, 0)] * (kept.ndim - 1) + [(1, 0)]) if self.class_token else kept
            x = _constrain(jnp.take_along_axis(x, kept[..., None], axis=-2), self.logical_axes)
        x = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x)
        if config.residual_dtype is not None:
            x = x.astype(config.residual_dtype)
        if target_device().platform == "gpu":
            # XLA's own choice for Model 2 has the batch last: a fifth more memory traffic in a train step.
            x = with_layout_constraint(x, Layout(tuple(range(x.ndim))))
        x = self._layers(_constrain(x, self.logical_axes))  # [B, ..., 1 + N, d]
        if config.pool_norm and kept is None:
            return layer_norm(config, "norm", wide)(self._sown(x).mean(axis=-2, keepdims=True))  # [B, 1, d]
        return self._sown(layer_norm(config, "norm", wide)(x))

    def _sown(self, x: jax.Array) -> jax.Array:
        """Sows the tokens that are pooled, for `vivit_jax.models.relevance`."""
        if not self.sow_attention:
            return x
        self.sow("relevance", "tokens", x, **SOW_ONCE)
        return self.perturb("tokens", x)

    def _layers(self, x: jax.Array) -> jax.Array:
        """Applies all blocks, with their parameters stacked along a leading axis."""
        config, tokens = self.config, x.shape[-2]
        padding = self._padding(tokens)
        x = pad_tokens(x, tokens + padding)
        block: type[nn.Module] = EncoderBlock
        remat, scan = self.remat or config.remat, config.scan_layers
        if scan == AUTO:
            # Without gradients the loop was 1.07 to 1.12 times as fast as unrolled layers on a CPU (ViViT-B, 785
            # tokens), took an eighth of the memory, and compiled 3 to 12 times as fast; on a GPU loops are slow.
            scan = self.deterministic and target_device().platform != "gpu"
        if remat in _REMAT_POLICIES:
            # CSE cannot undo the recomputation inside a loop, but would in unrolled layers.
            block = nn.remat(block, policy=_REMAT_POLICIES[remat], prevent_cse=not scan)
        # Initialisation always scans: same parameters as unrolled, compiled L times as fast.
        scan = scan or self.is_initializing()
        layers = nn.scan(
            block,
            variable_axes=dict.fromkeys(("params", "intermediates", "relevance", "perturbations"), 0),
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
            unroll=1 if scan else self.num_layers,
        )(config, self.deterministic, self.sow_attention, self.logical_axes, tokens if padding else None, name="layers")
        # The published code has no stochastic depth in Model 3.
        ignored = config.attention == "factorised_self_attention" and not config.stochastic_depth_rescale
        rates = None
        if not (self.deterministic or ignored) and config.stochastic_depth_rate:
            rates = jnp.asarray(stochastic_depth_rates(config.stochastic_depth_rate, self.num_layers))
        return layers(x, rates)[0][..., :tokens, :]

    def _padding(self, tokens: int) -> int:
        """Returns the number of tokens of padding in all layers, which kernels on GPUs and TPUs would add and cut."""
        # Dropout masks depend on the shape, and must not depend on the device: there the backend pads by itself.
        dropout = self.config.dropout_rate > 0 and not self.deterministic
        backend = attention_backend(self.config, tokens, training=not self.deterministic)
        if dropout or self.sow_attention or backend not in ("cudnn", "splash"):
            return 0
        # Where it adds little. GPUs: XLA sums the gradients of biases and LayerNorms in the kernels that compute them
        # (Model 1: 13 % less memory traffic, 4 % less time of a train step, benchmarks/device.py). TPUs: by the
        # compiler, ViT-L has 12 % less HBM traffic on v5e, 14 on v4; on v3 3 % with 16, but 7 % more with 128.
        blocks = backend == "splash" and target_device().kind not in FLOAT32_KERNELS
        paddings = [-tokens % multiple for multiple in ((128, 16) if blocks else (16,))]
        return next((padding for padding in paddings if padding <= 0.025 * tokens), tokens % 2)
