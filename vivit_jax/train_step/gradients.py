"""Gradients of a loss: of what is trained alone, of a batch in parts, at the worst place nearby.

All of it is about one function, `Loss`: the loss of some rows of the batch, such that the losses of the parts of a
batch add up to that of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vivit_jax import sharding

# (parameters, rows of the batch, random key) -> (scalar, tree of scalars); over disjoint rows both add up.
Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
_PARTS = 2  # folded into the step's key: each part draws from a stream of its own


def loss_and_gradients(
    loss_fn: Loss, params: Any, trained: Any, batch: Any, key: jax.Array, *, parts: int = 1, sam_rho: float = 0.0
) -> tuple[jax.Array, Any, Any]:
    """The loss of a batch and its gradients.

    Args:
      loss_fn: see `Loss`.
      params: parameters.
      trained: a tree of bools like `params`; the rest is a constant, and no backward pass is spent on it.
      batch: a tree of arrays [B, ...].
      key: for what is random in the loss. One part gets it as it is; of several, each a key of its own.
      parts: how many the batch is taken in, one after another, so that activations are kept for one of them at a time.
      sam_rho: rho of sharpness-aware minimisation, at least 0, see `ascend`; both passes draw the same.

    Returns:
      (loss, the tree of scalars, gradients like `params`: 0 where it is not trained). With SAM the loss and the scalars
      are those of the parameters as they are, and the gradients those of the place nearby.

    Raises:
      ValueError: the batch does not divide into the parts.
    """
    leaves, structure = jax.tree.flatten(params)
    learns = jax.tree.leaves(trained)

    def whole(some: list[jax.Array]) -> Any:
        some = iter(some)
        return jax.tree.unflatten(structure, [next(some) if t else x for t, x in zip(learns, leaves, strict=True)])

    differentiate = jax.value_and_grad(lambda some, rows, key: loss_fn(whole(some), rows, key), has_aux=True)

    def of_batch(some: list[jax.Array]) -> Any:
        if parts == 1:
            return differentiate(some, batch, key)
        keys = jax.vmap(lambda part: jax.random.fold_in(jax.random.fold_in(key, _PARTS), part))(jnp.arange(parts))
        rows = split_rows(batch, parts)
        shapes = jax.eval_shape(differentiate, some, *jax.tree.map(lambda x: x[0], (rows, keys)))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(some, *part)), None

        return jax.lax.scan(add, nothing, (rows, keys))[0]

    some = [x for t, x in zip(learns, leaves, strict=True) if t]
    (loss, scalars), gradients = of_batch(some)
    if sam_rho:
        _, gradients = of_batch(ascend(some, gradients, sam_rho))
    gradients = iter(gradients)
    filled = [next(gradients) if t else jnp.zeros_like(x) for t, x in zip(learns, leaves, strict=True)]
    return loss, scalars, jax.tree.unflatten(structure, filled)


def split_rows(batch: Any, parts: int) -> Any:
    """A batch in parts: [B, ...] -> [parts, B / parts, ...]; part j has the rows j, j + parts, j + 2 parts and so on.

    Strided, because the devices of a mesh hold consecutive rows: so each device finds its share of every part among its
    own, and no pixels travel (where each device's rows divide by the parts).

    Raises:
      ValueError: the batch does not divide.
    """

    def split(rows: jax.Array) -> jax.Array:
        if len(rows) % parts:
            raise ValueError(f"a batch of {len(rows)} does not divide into optimizer.accumulate_steps={parts} parts")
        rows = jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)
        return sharding.constrain(rows, None, "batch", *[None] * (rows.ndim - 2))

    return jax.tree.map(split, batch)


def ascend(params: Any, gradients: Any, rho: float) -> Any:
    """The place nearby where the loss is worst, to first order: w + rho g / ||g||.

    Sharpness-aware minimisation (arXiv:2010.01412, equation 2 with p = 2). The norm is that of the global gradient of
    what is trained (scenic takes one for each device's share of the batch).

    Args:
      params: parameters.
      gradients: like `params`. Where all are 0, the place is `params` itself.
      rho: radius, > 0.
    """
    norm = optax.tree.norm(gradients)
    scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)
    return jax.tree.map(lambda w, g: w + (scale * g).astype(w.dtype), params, gradients)
