"""Gradients of a loss: of the trained parameters only, in microbatches, at SAM's perturbed parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vivit_jax import sharding

# (parameters, rows of the batch, random key) -> (loss, tree of scalars); sums over microbatches give the whole batch's.
Loss = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
_MICROBATCH_STREAM = 2  # folded into the step's key, to give each microbatch its own random stream


def loss_and_gradients(
    loss_fn: Loss,
    params: Any,
    trained: Any,
    batch: Any,
    key: jax.Array,
    *,
    accumulate_steps: int = 1,
    sam_rho: float = 0.0,
) -> tuple[jax.Array, Any, Any]:
    """Returns the loss of a batch, `loss_fn`'s tree of scalars, and the gradients like `params`, 0 where not trained.

    Args:
      trained: a tree of bools like `params`; the others are constants without a backward pass.
      batch: a tree of arrays [B, ...].
      key: random key of the step; with several microbatches, each gets its own.
      accumulate_steps: number of microbatches, computed one after another to keep the activations of one at a time.
      sam_rho: of sharpness-aware minimisation (`sam_perturb`); 0: off. Keys are shared; the loss is that of `params`.
    """
    differentiate = jax.value_and_grad(
        lambda trainable, rows, key: loss_fn(select_trained(trained, trainable, params), rows, key), has_aux=True
    )

    def batch_gradients(trainable: Any) -> Any:
        """Returns ((loss, scalars), gradients) of the whole batch, accumulated over its microbatches."""
        if accumulate_steps == 1:
            return differentiate(trainable, batch, key)
        stream = jax.random.fold_in(key, _MICROBATCH_STREAM)
        keys = jax.vmap(lambda number: jax.random.fold_in(stream, number))(jnp.arange(accumulate_steps))
        microbatches = split_rows(batch, accumulate_steps)
        shapes = jax.eval_shape(differentiate, trainable, *jax.tree.map(lambda x: x[0], (microbatches, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def accumulate(total: Any, microbatch: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(trainable, *microbatch)), None

        return jax.lax.scan(accumulate, zeros, (microbatches, keys))[0]

    trainable = jax.tree.map(lambda t, x: x if t else None, trained, params)
    (loss, scalars), gradients = batch_gradients(trainable)
    if sam_rho:
        _, gradients = batch_gradients(sam_perturb(trainable, gradients, sam_rho))
    return loss, scalars, select_trained(trained, gradients, jax.tree.map(jnp.zeros_like, params))


def select_trained(trained: Any, new: Any, old: Any) -> Any:
    """Returns the trained leaves of `new`, and the others of `old`."""
    return jax.tree.map(lambda t, a, b: a if t else b, trained, new, old)


def split_rows(batch: Any, parts: int) -> Any:
    """Splits a batch: [B, ...] -> [parts, B / parts, ...]; part j has the rows j, j + parts, j + 2 parts, ...

    Strided, because each device of a mesh holds consecutive rows: if their number divides by `parts`, every device
    already holds its rows of each part, and no pixels are sent.
    """

    def split(rows: jax.Array) -> jax.Array:
        if len(rows) % parts:
            raise ValueError(f"a batch of {len(rows)} does not divide into optimizer.accumulate_steps={parts} parts")
        rows = jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)
        return sharding.constrain(rows, None, "batch", *[None] * (rows.ndim - 2))

    return jax.tree.map(split, batch)


def sam_perturb(params: Any, gradients: Any, rho: float) -> Any:
    """Returns the parameters within radius rho with the highest loss, to first order: w + rho g / ||g||.

    Sharpness-aware minimisation (arXiv:2010.01412, equation 2 with p = 2), with the norm of the global gradient of the
    trained parameters (scenic uses that of each device's gradient). Gradients of 0 change nothing.
    """
    norm = optax.tree.norm(gradients)
    scale = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)
    return jax.tree.map(lambda w, g: w + (scale * g).astype(w.dtype), params, gradients)
