"""Dtypes of the encoders' dense layers: of the products, and of the sums of kernel gradients over devices.

The partitioner sums a kernel's gradient over devices in the dtype of the product that makes it. Under bfloat16 compute
with float32 parameters the all-reduce (with FSDP the reduce-scatter) of every kernel is therefore bfloat16, and casting
the gradient afterwards does not help: the product itself must be asked for another dtype, which
`ViViTConfig.gradient_dtype` sets. Tokenizer, LayerNorms, position embeddings and heads always use float32.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from vivit_jax.models.config import ViViTConfig

STORED = ("dense", "attention")  # names of what `remat="dots"` stores


def dense_options(config: ViViTConfig) -> dict[str, Any]:
    """Returns the keyword arguments of the encoders' `nn.Dense` and `nn.DenseGeneral`: dtypes, initialiser, product.

    The layer's output may be wider than `config.dtype`: cast it.
    """
    options: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
    options["kernel_init"] = nn.initializers.xavier_uniform()
    if config.gradient_dtype not in (None, config.dtype):
        # Not Flax's own, which casts the parameters: the product does so itself.
        options["promote_dtype"] = lambda inputs, *parameters, dtype, **_: (inputs.astype(dtype), *parameters)
        options["dot_general"] = summed_in(config.dtype, config.gradient_dtype)
    return options


def compiler_options(config: ViViTConfig, mesh: Mesh | None = None) -> dict[str, Any]:
    """Returns XLA's options, for `jax.jit`, of a program of this model; `mesh` None: on jax's default device."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform != "gpu":
        return {}
    # Measured with benchmarks/device.py on an H200. Merged products are followed by copies of their parts: without
    # merging, a train step of Model 4 takes 3 % less time. cuBLAS adds bias, GELU and residual stream in the product's
    # kernel, Triton does not: with both options, and the padding of `Encoder`, Model 1 takes 5 % less time in a train
    # step, 10 % less in a forward pass. Models 3 and 4 take 3 to 5 % less with Triton.
    options: dict[str, Any] = {"xla_gpu_dot_merger_threshold_mb": 0}
    if config.attention in ("spatiotemporal", "factorised_encoder"):
        options["xla_gpu_enable_triton_gemm"] = False
    return options


def stored(x: jax.Array, name: str = "dense") -> jax.Array:
    """Marks an output that `remat="dots"` stores for the backward pass; `name` is one of `STORED`."""
    return checkpoint_name(x, name)


class DenseParameters(nn.Module):
    """The parameters of an `nn.DenseGeneral` over the last axis, without its product.

    Parameters: `kernel` (d, *features), xavier-uniform over the flattened features; `bias` (*features), zero.
    """

    config: ViViTConfig
    features: tuple[int, ...]
    use_bias: bool

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns (kernel, bias or None) for inputs of this width."""

        def init_flat(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            init = nn.initializers.xavier_uniform()
            return init(key, (width, math.prod(self.features)), dtype).reshape(shape)

        wide = self.config.param_dtype
        kernel = self.param("kernel", init_flat, (width, *self.features), wide)
        zeros = nn.initializers.zeros_init()
        return kernel, self.param("bias", zeros, self.features, wide) if self.use_bias else None


def parallel_dense(config: ViViTConfig, x: jax.Array, layers: Sequence[DenseParameters]) -> list[jax.Array]:
    """Applies dense layers of equal shape to the same [..., d] in one matrix product; [..., *features] for each."""
    kernels, biases = zip(*(layer(x.shape[-1]) for layer in layers), strict=True)
    kernel = jnp.stack(kernels, axis=1)  # [d, layers, *features]: the sharded dimensions stay whole
    if len(layers) == 1:  # flat: on GPUs the product of a kernel with more dimensions reads and writes more memory
        kernel = kernel.reshape(x.shape[-1], -1)
    options = dense_options(config)
    if (dot_general := options.get("dot_general")) is None:
        dot_general, kernel = jax.lax.dot_general, kernel.astype(config.dtype)
    out = dot_general(x.astype(config.dtype), kernel, (((x.ndim - 1,), (0,)), ((), ())))  # [..., layers, *features]
    if biases[0] is not None:
        out = out + jnp.stack(biases).astype(out.dtype).reshape(kernel.shape[1:])
    out = stored(out.astype(config.dtype)).reshape(*x.shape[:-1], len(layers), *kernels[0].shape[1:])
    return [jax.lax.index_in_dim(out, i, x.ndim - 1, keepdims=False) for i in range(len(layers))]


def summed_in(compute: str, gradient: str) -> Callable[..., jax.Array]:
    """Returns a `dot_general` for dense layers: inputs [..., contracted] x kernel [contracted, ...] -> [..., ...].

    The factors of all three products, forward and backward, have the dtype `compute`. The kernel's gradient, and so its
    sum over devices, is computed in `gradient`, then cast to the kernel's dtype. The output is float32, so that the
    bias is added, and its gradient summed, in float32 too.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def product(inputs: jax.Array, kernel: jax.Array, contracted: int) -> jax.Array:
        return jnp.tensordot(inputs, kernel.astype(compute), contracted, preferred_element_type=jnp.float32)

    def forward(inputs: jax.Array, kernel: jax.Array, contracted: int) -> tuple[jax.Array, Any]:
        return product(inputs, kernel, contracted), (inputs, kernel)

    def backward(contracted: int, residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs, kernel = residuals
        cotangent = cotangent.astype(compute)  # loses nothing: it comes from the cast of the output to `compute`
        outputs, rows = _last(kernel.ndim, kernel.ndim - contracted), tuple(range(inputs.ndim - contracted))
        axes = (_last(cotangent.ndim, len(outputs)), outputs)
        inputs_gradient = jnp.tensordot(cotangent, kernel.astype(compute), axes, preferred_element_type=inputs.dtype)
        kernel_gradient = jnp.tensordot(inputs, cotangent, (rows, rows), preferred_element_type=gradient)
        return inputs_gradient, kernel_gradient.astype(kernel.dtype)

    product.defvjp(forward, backward)

    def dot_general(inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
        return product(inputs, kernel, len(dimension_numbers[0][1]))

    return dot_general


def _last(ndim: int, count: int) -> tuple[int, ...]:
    return tuple(range(ndim - count, ndim))
