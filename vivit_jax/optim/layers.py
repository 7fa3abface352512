"""Parameters by their paths: masks by regular expressions, and layer-wise updates.

The leaves under `*/layers/` hold all layers of an encoder, [L, ...], while optax treats an array as one layer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit_jax.utils.trees import path_name

ENCODERS = ("encoder", "spatial_encoder", "temporal_encoder")  # in the order of the forward pass


def is_stacked(name: str) -> bool:
    """Whether the parameter at a path holds all layers of an encoder, [L, ...]."""
    return "layers" in name.split("/")[:-1]


def is_head(name: str) -> bool:
    """Whether the parameter at a path belongs to a classification head, `head` or `head_NAME`."""
    module = name.split("/")[0]
    return module == "head" or module.startswith("head_")


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Scales by LAMB's trust ratio ||w|| / ||u|| (arXiv:1904.00962, algorithm 2), layer by layer in stacked leaves."""
    ratio = optax.scale_by_trust_ratio()

    def one_layer(update: jax.Array, param: jax.Array) -> jax.Array:
        return ratio.update(update, optax.EmptyState(), param)[0]

    def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        return (jax.vmap(one_layer) if is_stacked(path_name(path)) else one_layer)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params))


def scale_by_depth(layer_decay: float, head: float) -> optax.GradientTransformation:
    """Multiplies the updates by `learning_rate_factors`."""

    def scale(updates: Any, params: Any) -> Any:
        factors = learning_rate_factors(updates, layer_decay, head)
        return jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors)

    return optax.stateless(scale)


def learning_rate_factors(params: Any, layer_decay: float, head: float = 1.0) -> Any:
    """Returns the learning rate of each parameter in multiples of the schedule's.

    Layer-wise decay as in ELECTRA and BEiT (arXiv:2003.10555, appendix A; arXiv:2106.08254, section 3): the factor at
    depth i of L layers is decay^(L + 1 - i). Depths are 0 for the tokenizer; 1 to L for the layers, in Model 2 those of
    the spatial encoder, then those of the temporal one; one less than its first layer for an encoder's class token and
    position embedding, one more than its last layer for its LayerNorm; L + 1 for heads and pre-logits layer.

    `layer_decay` is in (0, 1]; at 1 the model can be any. `head` is an additional factor for the heads, > 0. The
    result is a tree of float64 scalars, and of [L, 1, ...] for stacked leaves.
    """
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
    sizes = {name.split("/")[0]: leaf.shape[0] for name, leaf in leaves if is_stacked(name)}
    layers = {encoder: sizes[encoder] for encoder in ENCODERS if encoder in sizes} if layer_decay < 1 else {}
    top = sum(layers.values()) + 1

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
        name = path_name(path)
        factor = layer_decay ** (float(top) - _depth(name, layers)) if layer_decay < 1 else np.ones(())
        factor = np.asarray(factor * head if is_head(name) else factor)
        return factor.reshape(-1, *[1] * (leaf.ndim - 1)) if factor.ndim else factor

    return jax.tree_util.tree_map_with_path(factor, params)


def _depth(name: str, layers: Mapping[str, int]) -> np.ndarray:
    """The depth of a parameter, or of each layer of a stacked one."""
    module, *rest = name.split("/")
    if module == "tokenizer":
        return np.array(0)
    if is_head(name) or module == "pre_logits":
        return np.array(sum(layers.values()) + 1)
    if module not in layers:
        known = f"tokenizer, {', '.join(ENCODERS)}, pre_logits and heads"
        raise ValueError(f"optimizer.layer_decay does not know the depth of {name}, only of {known}; set it to 1")
    below = sum(layers[encoder] for encoder in list(layers)[: list(layers).index(module)])
    if is_stacked(name):
        return below + 1 + np.arange(layers[module])
    return np.array(below + layers[module] + 1 if rest[0] == "norm" else below)


def path_mask(pattern: str) -> Callable[[Any], Any]:
    """Returns a function from a tree to a tree of bools: whether the pattern is found in the leaf's path."""
    regex = re.compile(pattern)
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(regex.search(path_name(path))), tree)


def trained_mask(frozen: Sequence[str]) -> Callable[[Any], Any]:
    """Returns a function from parameters to a tree of bools: False where a pattern of `frozen` is found in the path.

    It raises ValueError if one of the patterns is found in no path, or if no parameter is trained.
    """

    def mask(params: Any) -> Any:
        for pattern in frozen:
            check_found(pattern, params, "optimizer.frozen")
        masks = [path_mask(pattern)(params) for pattern in frozen]
        trained = jax.tree.map(lambda _, *is_frozen: not any(is_frozen), params, *masks)
        if not any(jax.tree.leaves(trained)):
            raise ValueError(f"optimizer.frozen={tuple(frozen)} leaves nothing to train; {_paths(params)}")
        return trained

    return mask


def check_found(pattern: str, params: Any, field: str) -> None:
    """Raises ValueError if the pattern of a config field is found in no parameter's path."""
    if not any(jax.tree.leaves(path_mask(pattern)(params))):
        raise ValueError(f"{field}={pattern!r} is found in no parameter's path; {_paths(params)}")


def _paths(params: Any) -> str:
    paths = (path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    return f"the parameters: {', '.join(paths)}"
