"""Errors of the attention backends on this device against float64, values and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LENGTHS = (1, 16, 17, 197, 3137)
TOLERANCE = 2e-2  # of the largest value; bfloat16 has 8 bits, a rounding error of 0.4 %
RESULTS = ("value", "gradient of query", "gradient of key", "gradient of value")


def oracle(q: np.ndarray, k: np.ndarray, v: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns attention (eq. 7) and the gradients of sum(cotangent * attention), all [..., N, head_dim] in float64."""
    q, k, v, cotangent = (x.astype(np.float64) for x in (q, k, v, cotangent))
    scale = q.shape[-1] ** -0.5
    logits = scale * q @ k.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = weights @ v
    # The gradient of softmax: p (dp - sum(p dp)), where the sum is that of cotangent and output.
    of_logits = cotangent @ v.swapaxes(-1, -2) - np.sum(cotangent * out, -1, keepdims=True)
    of_logits *= weights
    of_value = weights.swapaxes(-1, -2) @ cotangent
    return out, scale * of_logits @ k, scale * of_logits.swapaxes(-1, -2) @ q, of_value


def errors(
    backends: Mapping[str, Any], length: int, dtype: str = "bfloat16", heads: int = 2, head_dim: int = 64
) -> dict[str, dict[str, float] | Exception]:
    """Returns the largest errors of each backend's results, each divided by the largest value of that result.

    `backends` are some of `vivit_jax.models.attention_backends.BACKENDS`; one that refuses has its exception as the
    result. The oracle starts from the rounded inputs.
    """
    rng = np.random.default_rng(length)
    shape = (2, heads, length, head_dim)
    *qkv, cotangent = (jnp.asarray(rng.standard_normal(shape, np.float32)).astype(dtype) for _ in range(4))
    expected = oracle(*(np.asarray(x.astype(jnp.float32)) for x in (*qkv, cotangent)))
    # With one key its weight is 1: the gradients of query and key are 0, and their errors are taken as they are.
    scales = [np.abs(x).max() if length > 1 else 1.0 for x in expected]
    found: dict[str, dict[str, float] | Exception] = {}
    for name, backend in backends.items():

        @jax.jit
        def results(*qkv: jax.Array, backend: Any = backend) -> tuple[jax.Array, ...]:
            out, backward = jax.vjp(lambda *qkv: backend(*qkv), *qkv)
            return out, *backward(cotangent)

        try:
            values = [np.asarray(x.astype(jnp.float32), np.float64) for x in results(*qkv)]
        except Exception as error:  # the device, a length or a dtype is not for this backend
            found[name] = error
            continue
        found[name] = {
            label: float(np.abs(x - y).max() / scale)
            for label, x, y, scale in zip(RESULTS, values, expected, scales, strict=True)
        }
    return found
