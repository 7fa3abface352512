"""What an optimizer must know of the model's layers: how deep each parameter lies, and that encoders are stacked.

The leaves under `*/layers/` hold all layers of an encoder, [L, ...]. What optax does for each array, as LAMB's trust
ratio, would be done once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit_jax.utils.trees import path_name

ENCODERS = ("encoder", "spatial_encoder", "temporal_encoder")  # in the order that a clip goes through them
_STACKED = "layers"


def is_stacked(name: str) -> bool:
    """Whether the leaf of this path holds all layers of an encoder, [L, ...]."""
    return _STACKED in name.split("/")[:-1]


def is_head(name: str) -> bool:
    """Whether the leaf of this path belongs to a classification head: `head`, or `head_NAME` of each of several."""
    module = name.split("/")[0]
    return module == "head" or module.startswith("head_")


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """LAMB's trust ratio ||w|| / ||u|| (arXiv:1904.00962, algorithm 2) for each layer: of stacked leaves, for each of
    their slices. As `optax.scale_by_trust_ratio` on a tree that is not stacked."""
    ratio = optax.scale_by_trust_ratio()

    def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        def one(update: jax.Array, param: jax.Array) -> jax.Array:
            return ratio.update(update, optax.EmptyState(), param)[0]

        return (jax.vmap(one) if is_stacked(path_name(path)) else one)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params))


def scale_by_depth(layer_decay: float, head: float) -> optax.GradientTransformation:
    """Multiplies the updates by `learning_rate_factors`."""

    def scale(updates: Any, params: Any) -> Any:
        factors = learning_rate_factors(updates, layer_decay, head)
        return jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors)

    return optax.stateless(scale)


def learning_rate_factors(params: Any, layer_decay: float, head: float = 1.0) -> Any:
    """The learning rate of each parameter in multiples of the schedule's.

    Layer-wise decay as ELECTRA and BEiT have it (arXiv:2003.10555, appendix A; arXiv:2106.08254, section 3): what lies
    at depth i of L layers gets decay^(L + 1 - i). Tokeniser: 0; layers: 1 to L, in Model 2 those of the spatial
    encoder, then those of the temporal one; an encoder's class token and position embedding one below its first layer,
    its LayerNorm one above its last; heads and pre-logits layer: L + 1, so that their factor is 1.

    Args:
      params: parameters of a ViViT, or a tree of the same shapes; of any model where `layer_decay` is 1.
      layer_decay: in (0, 1].
      head: a factor for the heads, > 0.

    Returns:
      A tree of float64 scalars, and of [L, 1, ...] for stacked leaves.

    Raises:
      ValueError: a parameter whose depth is not known.
    """
    layers = _count_layers(params) if layer_decay < 1 else {}
    depth = sum(layers.values())

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
        name = path_name(path)
        factor = layer_decay ** (depth + 1.0 - _depth(name, layers)) if layer_decay < 1 else np.ones(())
        factor = np.asarray(factor * head if is_head(name) else factor)
        return factor.reshape(-1, *[1] * (leaf.ndim - 1)) if factor.ndim else factor

    return jax.tree_util.tree_map_with_path(factor, params)


def _count_layers(params: Any) -> Mapping[str, int]:
    """Layers of each encoder, in the order of `ENCODERS`."""
    sizes = {
        path_name(path).split("/")[0]: leaf.shape[0]
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if is_stacked(path_name(path))
    }
    return {encoder: sizes[encoder] for encoder in ENCODERS if encoder in sizes}


def _depth(name: str, layers: Mapping[str, int]) -> np.ndarray:
    """Depth of a leaf, or of each layer of a stacked one: 0 for the tokeniser, L + 1 for the heads."""
    module, *rest = name.split("/")
    if module == "tokenizer":
        return np.array(0)
    if is_head(name) or module == "pre_logits":
        return np.array(sum(layers.values()) + 1)
    if module not in layers:
        raise ValueError(
            f"optimizer.layer_decay does not know how deep {name} lies; it knows tokenizer, {', '.join(ENCODERS)}, "
            "pre_logits and the heads. Set it to 1"
        )
    below = sum(layers[encoder] for encoder in list(layers)[: list(layers).index(module)])
    if is_stacked(name):
        return below + 1 + np.arange(layers[module])
    return np.array(below + layers[module] + 1 if rest[0] == "norm" else below)
