"""Where a model looks: the attention of its last layer."""

from collections.abc import Callable
from typing import Any

import jax

from vivit_jax.models import ViViTConfig
from vivit_jax.train_step import normalise


def attention_map(apply_fn: Callable[..., Any], config: ViViTConfig, params: Any, video: jax.Array) -> jax.Array:
    """Returns the attention weights of the last layer over the token grid.

    With a class token: its row of the weights, averaged over the heads. Without: the weight of each token, averaged
    over all queries. Factorised models: the product of the weight in time and the weight in space.

    Args:
      apply_fn: `apply` of the model.
      config: of the model.
      params: of the model.
      video: uint8 [1, T, H, W, 3].

    Returns:
      float32 [n_t, n_h, n_w], summing to 1.
    """
    _, sown = apply_fn({"params": params}, normalise(video), sow_attention=True, mutable=["intermediates"])
    token, grid = config.classifier == "token", config.grid

    def last(*path: str) -> jax.Array:
        leaf: Any = sown["intermediates"]
        for name in path:
            leaf = leaf[name]
        weights = leaf[-1, 0]  # last layer, first clip
        return weights.mean(axis=-3)  # over the heads: [..., queries, keys]

    def received(weights: jax.Array, has_token: bool) -> jax.Array:
        return weights[..., 0, 1:] if has_token else weights.mean(axis=-2)

    if config.attention == "spatiotemporal":
        where = received(last("encoder", "layers", "attention", "weights"), token)
    elif config.attention == "factorised_encoder":
        where = received(last("spatial_encoder", "layers", "attention", "weights"), token)  # [n_t, n_s]
        if config.temporal_layers:
            when = received(last("temporal_encoder", "layers", "attention", "weights"), token)  # [n_t] or [n_s, n_t]
            where = where / where.sum(-1, keepdims=True) * (when[:, None] if config.frame_pooling else when.T)
    else:
        layers = ("encoder", "layers")
        names = (
            (("attention_space", "weights"), ("attention_time", "weights"))
            if config.attention == "factorised_self_attention"
            else (("attention", "weights_space"), ("attention", "weights_time"))
        )
        space, time = (received(last(*layers, *name), False) for name in names)  # [n_t, n_s], [n_s, n_t]
        where = space * time.T
    where = where.reshape(grid).astype("float32")
    return where / where.sum()
