"""Transforms of the arrays of one row, between a format and ours."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vivit_jax.models import ViViTConfig

Leaves = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """Conversion of the arrays of one row, of one layer."""

    load: Callable[[np.ndarray], Leaves]  # array of the format -> ours, one for each name in the row
    save: Callable[[Leaves], np.ndarray]  # the inverse


def derived(leaf: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Returns a leaf that applies `change` in float64 when it is read; float32 or wider."""
    dtype = np.promote_types(leaf.dtype, np.float32)
    return dataclasses.replace(leaf, dtype=dtype, read=lambda: change(leaf.read().astype(np.float64)).astype(dtype))


SAME = Transform(load=lambda x: [x], save=lambda xs: xs[0])
# (1, 1, d) or (1, N, d) in the format, (d,) or (N, d) here.
VECTOR = Transform(load=lambda x: [_unbatch(x, (1, 1))], save=lambda xs: xs[0][None, None])
SEQUENCE = Transform(load=lambda x: [_unbatch(x, (1,))], save=lambda xs: xs[0][None])
TRANSPOSED = Transform(load=lambda x: [x.T], save=lambda xs: xs[0].T)
# Convolution kernels of PyTorch, (d, C, [t,] h, w) in the format, ([t,] h, w, C, d) here.
CONVOLUTION = Transform(
    load=lambda x: [np.moveaxis(x, (0, 1), (-1, -2))], save=lambda xs: np.moveaxis(xs[0], (-1, -2), (0, 1))
)


def image_kernel(config: ViViTConfig, transform: Transform = SAME) -> Transform:
    """Returns the transform of a 2-D embedding; a config may write it as tubelets of one frame: (1, h, w, C, d)."""

    def load(x: np.ndarray) -> Leaves:
        (kernel,) = transform.load(x)
        return [kernel[None] if config.tokenizer == "tubelet" and kernel.ndim == 4 else kernel]

    return Transform(load, lambda xs: transform.save([xs[0][0] if xs[0].ndim == 5 else xs[0]]))


def _unbatch(x: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """Removes leading axes of length one; other arrays stay as they are and are refused by their shape."""
    return x.reshape(x.shape[len(lead) :]) if x.shape[: len(lead)] == lead else x


def slotted(config: ViViTConfig) -> Transform:
    """Returns the transform of an image model's positions, which may lack the class token's slot: ours is then zero."""
    tokens = config.grid[1] * config.grid[2]

    def load(x: np.ndarray) -> Leaves:
        x = _unbatch(x, (1,))
        lacks_slot = config.classifier == "token" and x.ndim == 2 and x.shape[0] == tokens
        return [np.pad(x, ((1, 0), (0, 0))) if lacks_slot else x]

    return Transform(load=load, save=lambda xs: xs[0][None])


def concatenated(sizes: Sequence[int]) -> Transform:
    """Returns the transform of one array that concatenates several of ours, of these sizes, along the last axis."""
    bounds = np.cumsum(sizes)[:-1]
    return Transform(
        load=lambda x: np.split(x, bounds, axis=-1) if x.shape[-1:] == (sum(sizes),) else [x] * len(sizes),
        save=lambda xs: np.concatenate(xs, axis=-1),
    )


def projection(num_heads: int, parts: int = 1) -> Transform:
    """Returns the transform (parts x heads x head_dim[, d]) of PyTorch -> `parts` of ([d,] heads, head_dim) of ours."""

    def load(x: np.ndarray) -> Leaves:
        if x.shape[0] % (parts * num_heads):
            return [x] * parts  # refused by its shape
        pieces = np.split(x, parts, axis=0)
        return [piece.T.reshape(*piece.T.shape[:-1], num_heads, -1) for piece in pieces]

    def save(xs: Leaves) -> np.ndarray:
        return np.concatenate([x.reshape(*x.shape[:-2], -1).T for x in xs], axis=0)

    return Transform(load, save)


def output_projection(num_heads: int) -> Transform:
    """Returns the transform (d, heads x head_dim) of PyTorch <-> (heads, head_dim, d) of ours."""

    def load(x: np.ndarray) -> Leaves:
        return [x.T.reshape(num_heads, -1, x.shape[0]) if x.ndim == 2 and x.shape[1] % num_heads == 0 else x]

    return Transform(load, lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T)
