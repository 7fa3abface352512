"""The encoder blocks of section 3.3, what they are made of, and the encoder that stacks them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax import sharding
from vivit_jax.models.attention import MultiHeadAttention
from vivit_jax.models.config import ViViTConfig
from vivit_jax.models.dense import dense_options

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def layer_norm(config: ViViTConfig, name: str, dtype: str | None = None) -> nn.LayerNorm:
    """A LayerNorm over d in `dtype` (default: the config's); its statistics are float32 or wider always."""
    dtype = dtype or config.dtype
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, param_dtype=config.param_dtype, name=name)


def stochastic_depth_rates(rate: float, num_layers: int) -> np.ndarray:
    """The linear decay rule (Huang et al., arXiv:1603.09382, section 3): layer i of L drops with rate * i /
    (L - 1).

    Args:
      rate: that of the last layer, in [0, 1).
      num_layers: L.

    Returns:
      float32 [L], 0 for the first layer (and for an only one).
    """
    return (rate * np.arange(num_layers) / max(num_layers - 1, 1)).astype(np.float32)


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples (Huang et al., arXiv:1603.09382; table 4 of the paper).

    An example is a clip: under Model 2 all frames of a clip keep or lose a branch together.

    Attributes:
      rescale: divide kept branches by the probability of being kept, so that the expectation does not change.
      deterministic: do nothing.
    """

    rescale: bool
    deterministic: bool

    @nn.compact
    def __call__(self, branch: jax.Array, rate: jax.Array | None) -> jax.Array:
        """Drops.

        Args:
          branch: [B, ...].
          rate: scalar in [0, 1), or None for nothing to drop.

        Returns:
          The same shape: each of the B examples 0 with probability `rate`.
        """
        if self.deterministic or rate is None:
            return branch
        keep = 1.0 - rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape).astype(branch.dtype)
        return branch * (kept / keep.astype(branch.dtype) if self.rescale else kept)


class MlpBlock(nn.Module):
    """The MLP of eq. 3: dense to `mlp_dim`, GELU, dense back to d; dropout after each.

    Parameters: `dense_in`, `dense_out`; kernels xavier-uniform, biases N(0, 1e-6).

    Attributes:
      config: sizes, activation, dropout and dtypes.
      deterministic: no dropout.
      places: what the token axes are to the mesh, see `Encoder`.
    """

    config: ViViTConfig
    deterministic: bool = True
    places: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., d]."""
        config = self.config
        width = {**dense_options(config), "bias_init": nn.initializers.normal(stddev=1e-6)}
        shape, names = x.shape, ("batch", *(self.places or (None,) * (x.ndim - 2)))
        if all(place is None or sharding.num_shards(place) == 1 for place in self.places):
            # One axis of tokens: XLA's CPU gradients of dense layers are twice as fast so. Not where devices hold a
            # share of the batch and a share of its tokens: the merged axis would have to be gathered.
            x, names = x.reshape(-1, shape[-1]), ("batch",)
        x = nn.Dense(config.mlp_dim, name="dense_in", **width)(x).astype(config.dtype)  # [tokens, mlp_dim]
        x = sharding.constrain(x, *names, "mlp")
        x = nn.gelu(x, approximate=config.activation == "gelu_tanh")
        x = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x)
        x = nn.Dense(config.hidden_size, name="dense_out", **width)(x).astype(config.dtype)  # [tokens, d]
        return nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x).reshape(shape)


class EncoderBlock(nn.Module):
    """One layer of the encoder, pre-LN (eqs. 2 and 3): y = x + MSA(LN(x)); z = y + MLP(LN(y)).

    Which attentions there are is `config.attention`:

    * `spatiotemporal`, `factorised_encoder` (Models 1, 2): one, over the N tokens; `norm_attention`,
      `attention`.
    * `factorised_self_attention` (Model 3, eqs. 4 to 6): one over time and one over space, each with its own
      LayerNorm and residual, in `config.attention_order`; `norm_time`, `attention_time`, `norm_space`,
      `attention_space`.
    * `factorised_dot_product` (Model 4): one, half of its heads over time and half over space; named as in
      Model 1.

    Parameters further: `norm_mlp`, `mlp`. The residual stream keeps the dtype of `x`.

    Attributes:
      config: everything about the layer.
      deterministic: neither dropout nor stochastic depth.
      sow_attention: sow the attention weights, see `MultiHeadAttention`.
      places: what the token axes are to the mesh, see `Encoder`.
    """

    config: ViViTConfig
    deterministic: bool = True
    sow_attention: bool = False
    places: tuple[str | None, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array | None) -> tuple[jax.Array, None]:
        """One layer.

        Args:
          x: [B, ..., N, d] (Models 1, 2) or [B, n_t, n_s, d] (Models 3, 4).
          drop_rate: this layer's rate of stochastic depth, a scalar; None for none.

        Returns:
          (the same shape, None), as a scan over layers wants it.
        """
        config = self.config
        for axes, suffix in _attentions(config):
            y = layer_norm(config, f"norm_{suffix or 'attention'}")(x)
            name = f"attention_{suffix}" if suffix else "attention"
            y = MultiHeadAttention(config, axes, self.deterministic, self.sow_attention, self.places, name=name)(y)
            y = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(y)
            x = self._lay(x + self._depth(y, drop_rate).astype(x.dtype))
        y = layer_norm(config, "norm_mlp")(x)
        y = MlpBlock(config, self.deterministic, self.places, name="mlp")(y)
        return self._lay(x + self._depth(y, drop_rate).astype(x.dtype)), None

    def _lay(self, x: jax.Array) -> jax.Array:
        return sharding.constrain(x, "batch", *(self.places or (None,) * (x.ndim - 2)), None)

    def _depth(self, branch: jax.Array, rate: jax.Array | None) -> jax.Array:
        return StochasticDepth(self.config.stochastic_depth_rescale, self.deterministic)(branch, rate)


def _attentions(config: ViViTConfig) -> Sequence[tuple[tuple[int, ...], str]]:
    """The attentions of one block in their order: (axes, suffix of the parameters' names)."""
    if config.attention == "factorised_self_attention":
        rows = {"time": ((-3,), "time"), "space": ((-2,), "space")}
        return [rows[axis] for axis in config.attention_order.split("_")]
    return [((-3, -2) if config.attention == "factorised_dot_product" else (-2,), "")]


class Encoder(nn.Module):
    """A transformer encoder (eqs. 1 to 3): class token, position embedding, L blocks, a last LayerNorm.

    Parameters: `class_token` (d,) at 0, where there is one, put in front; `position_embedding` (slots, d),
    N(0, 0.02), slot 0 the class token's; `layers`, the blocks' leaves stacked as [L, ...] whether scanned or
    not; `norm`.

    Attributes:
      config: everything about the layers.
      num_layers: L.
      class_token: put one in front of the tokens (along the last token axis).
      token_axes: how many axes of the input are tokens with positions: 1 (a sequence) or 2 (time, space).
      deterministic: neither dropout nor stochastic depth.
      sow_attention: sow the attention weights, stacked over layers.
      places: for each axis between batch and d how a mesh splits it: `tokens`, `time` or `space`, the names of
        `vivit_jax.sharding.constrain`, or None for whole; () for all whole.
      remat: what the backward pass recomputes; None for as the config's `remat` says.
    """

    config: ViViTConfig
    num_layers: int
    class_token: bool
    token_axes: int = 1
    deterministic: bool = True
    sow_attention: bool = False
    places: tuple[str | None, ...] = ()
    remat: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Encodes.

        Args:
          x: [B, ..., N, d], the N tokens of each sequence, or [B, n_t, n_s, d] with `token_axes=2`.

        Returns:
          The same shape, N + 1 where there is a class token, which then is the first.
        """
        config = self.config
        wide = config.param_dtype
        names = ("batch", *(self.places or (None,) * (x.ndim - 2)), None)
        x = sharding.constrain(x, *names)
        if self.class_token:
            token = self.param("class_token", nn.initializers.zeros_init(), (config.hidden_size,), wide)
            token = jnp.broadcast_to(token.astype(x.dtype), (*x.shape[:-2], 1, config.hidden_size))
            x = jnp.concatenate([token, x], axis=-2)  # [B, ..., 1 + N, d]
        places = x.shape[-1 - self.token_axes : -1]
        shape = (math.prod(places), config.hidden_size)
        position = self.param("position_embedding", nn.initializers.normal(stddev=0.02), shape, wide)
        x = x + position.astype(x.dtype).reshape(*places, config.hidden_size)
        x = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x)
        if config.residual_dtype is not None:
            x = x.astype(config.residual_dtype)
        x = self._layers(sharding.constrain(x, *names))
        return layer_norm(config, "norm", wide)(x)

    def _layers(self, x: jax.Array) -> jax.Array:
        """All blocks, one after the other, with their parameters stacked along a leading axis."""
        config = self.config
        block: type[nn.Module] = EncoderBlock
        remat = self.remat or config.remat
        if remat != "none":
            # In a loop nothing can be shared with the forward pass; unrolled, XLA would undo the
            # recomputation.
            policy = _REMAT_POLICIES[remat]
            block = nn.remat(block, policy=policy, prevent_cse=not config.scan_layers)
        # The parameters of a scan are those of its unrolled form, and their program is compiled L times as fast.
        scan = config.scan_layers or self.is_initializing()
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
            unroll=1 if scan else self.num_layers,
        )(config, self.deterministic, self.sow_attention, self.places, name="layers")
        rates = None
        ignored = config.attention == "factorised_self_attention" and not config.stochastic_depth_rescale
        if config.stochastic_depth_rate and not self.deterministic and not ignored:
            rates = jnp.asarray(stochastic_depth_rates(config.stochastic_depth_rate, self.num_layers))
        return layers(x, rates)[0]
