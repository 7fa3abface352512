"""How the encoders' dense layers compute: which dtype multiplies, and in which the gradient of a kernel is summed.

The partitioner sums a gradient over the devices where the product that makes it ends, in the dtype of that product. So
under bfloat16 compute with float32 parameters the all-reduce (with FSDP the reduce-scatter) of every kernel is
bfloat16, and to cast the gradient afterwards changes nothing. What does is the dtype that the product is asked for, and
that is what `ViViTConfig.gradient_dtype` sets. Tokeniser, norms, position embeddings and heads compute in float32, and
are summed in it, whatever is chosen here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vivit_jax.models.config import ViViTConfig

DimensionNumbers = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def dense_options(config: ViViTConfig) -> dict[str, Any]:
    """What `nn.Dense` and `nn.DenseGeneral` of the encoders are given: dtypes, initialiser and, where the config asks
    for another `gradient_dtype` than that of the compute, the product.

    The layer's result is then wider than `config.dtype` may be: cast it.
    """
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "kernel_init": nn.initializers.xavier_uniform(),
    }
    if config.gradient_dtype not in (None, config.dtype):
        options["promote_dtype"] = _inputs_alone
        options["dot_general"] = summed_in(config.dtype, config.gradient_dtype)
    return options


def _inputs_alone(inputs: jax.Array, *parameters: Any, dtype: str, **_: Any) -> tuple[Any, ...]:
    """In place of Flax's `promote_dtype`: the parameters reach the product as they are stored, to be cast within."""
    return inputs.astype(dtype), *parameters


def summed_in(compute: str, gradient: str) -> Callable[..., jax.Array]:
    """A `dot_general(inputs, kernel, dimension_numbers)` of a dense layer with chosen dtypes.

    Args:
      compute: dtype of the factors of all three products, forward and backward.
      gradient: dtype of the product that is the kernel's gradient, and so of its sum over the devices. The result has
        the kernel's own.

    Returns:
      The product: inputs [..., contracted], kernel [contracted, ...], the contracted axes last of the one and first of
      the other, without batch axes; the result [..., ...] in float32, so that a bias is added, and its gradient summed,
      in float32 too.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def product(inputs: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
        numbers = (_last(inputs, contracted), tuple(range(contracted)))
        kernel = kernel.astype(compute)
        return jax.lax.dot_general(inputs, kernel, (numbers, ((), ())), preferred_element_type=jnp.float32)

    def forward(inputs: jax.Array, kernel: jax.Array, contracted: int) -> tuple[jax.Array, Any]:
        return product(inputs, kernel, contracted), (inputs, kernel)

    def backward(contracted: int, kept: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs, kernel = kept
        cotangent = cotangent.astype(compute)  # loses nothing: it comes from the cast of the result to `compute`
        outputs = kernel.ndim - contracted
        numbers = (_last(cotangent, outputs), tuple(range(contracted, kernel.ndim)))
        to_inputs = jax.lax.dot_general(
            cotangent, kernel.astype(compute), (numbers, ((), ())), preferred_element_type=inputs.dtype
        )
        rows = tuple(range(inputs.ndim - contracted))
        to_kernel = jax.lax.dot_general(
            inputs, cotangent, ((rows, rows), ((), ())), preferred_element_type=jnp.dtype(gradient)
        )
        return to_inputs, to_kernel.astype(kernel.dtype)

    product.defvjp(forward, backward)

    def dot_general(
        inputs: jax.Array, kernel: jax.Array, dimension_numbers: DimensionNumbers, precision: Any = None
    ) -> jax.Array:
        (of_inputs, of_kernel), batch = dimension_numbers
        if (
            precision is not None
            or batch != ((), ())
            or tuple(of_kernel) != tuple(range(len(of_kernel)))
            or tuple(of_inputs) != _last(inputs, len(of_inputs))
        ):
            raise ValueError(f"not the product of a dense layer: {dimension_numbers=}, {precision=}")
        return product(inputs, kernel, len(of_kernel))

    return dot_general


def _last(x: jax.Array, count: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - count, x.ndim))
