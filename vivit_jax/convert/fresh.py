"""Leaves as training from scratch would start them, without the others."""

from __future__ import annotations

from collections.abc import Iterable

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.models import ViViT, ViViTConfig


def fresh_leaves(config: ViViTConfig, names: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """Some leaves of the model as training from scratch with this seed would start them; the others are not made."""
    names = list(names)
    if not names:
        return {}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = ViViT(config).init(key, jnp.zeros((1, *config.video_shape)))["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return {name: flat[name] for name in names}

    return {name: np.asarray(leaf) for name, leaf in jax.jit(init)(jax.random.key(seed)).items()}
