"""Section 3.4 on single arrays, in NumPy: positions on another grid, embeddings of another tubelet length."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage


def resize_grid(positions: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Resizes position embeddings [n_1, ..., n_k, d] to [*grid, d] by linear interpolation with the corners in place.

    The published code uses `scipy.ndimage.zoom` of order 1 too, but treats every grid as a square.
    """
    if tuple(grid) == positions.shape[:-1]:
        return positions
    factors = [new / old for new, old in zip(grid, positions.shape[:-1], strict=True)]
    wide = positions if positions.dtype == np.float64 else positions.astype(np.float32)
    resized = scipy.ndimage.zoom(wide, (*factors, 1.0), order=1)
    assert resized.shape == (*grid, positions.shape[-1])
    return resized.astype(positions.dtype)


def central_frame(kernel: np.ndarray, t: int) -> np.ndarray:
    """Central frame initialisation, eq. 9: E = [0, ..., E_image, ..., 0], the kernel at frame t // 2.

    `kernel` is [h, w, C, d] of an image model, or [s, h, w, C, d] of tubelets with s <= t frames, whose own central
    frame moves to frame t // 2; the result [t, h, w, C, d].
    """
    kernel = kernel[None] if kernel.ndim == 4 else kernel
    frames = kernel.shape[0]
    if frames > t:
        raise ValueError(f"central_frame would drop {frames - t} of the {frames} frames; use filter_inflation")
    out = np.zeros((t, *kernel.shape[1:]), kernel.dtype)
    start = t // 2 - frames // 2
    out[start : start + frames] = kernel
    return out


def filter_inflation(kernel: np.ndarray, t: int) -> np.ndarray:
    """Filter inflation, eq. 8: E = 1/t [E_image, ..., E_image].

    Generalised to tubelets of s frames: each new frame takes the part of the old kernel that it covers in time. The sum
    over the frames, the response to a static clip, stays the same. Shapes are those of `central_frame`.
    """
    kernel = kernel[None] if kernel.ndim == 4 else kernel
    frames = kernel.shape[0]
    if frames == t:
        return kernel
    edges, new_edges = np.linspace(0, 1, frames + 1), np.linspace(0, 1, t + 1)
    low = np.maximum(edges[None, :-1], new_edges[:-1, None])
    high = np.minimum(edges[None, 1:], new_edges[1:, None])
    share = np.maximum(high - low, 0) * frames  # [t, s]: the share of an old frame that a new one covers
    return np.tensordot(share, kernel, axes=1).astype(kernel.dtype)


def fold_normalisation(
    kernel: np.ndarray, bias: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Converts an embedding of (x - mean) / std, x in [0, 1], to one of v = 2 x - 1 in [-1, 1], exactly.

    (x - mean) / std = v / (2 std) + (1/2 - mean) / std; without padding the constant goes into the bias. `kernel` is
    [..., h, w, C, d], `bias` [d]; `mean` and `std` have a value for each of the C channels.
    """
    if not len(mean) == len(std) == (channels := kernel.shape[-2]):
        raise ValueError(f"pixel_mean={mean} and pixel_std={std} must have a number for each of {channels} channels")
    wide, scale = kernel.astype(np.float64), np.asarray(std, np.float64)[:, None]
    shift = (0.5 - np.asarray(mean, np.float64)[:, None]) / scale
    constant = (wide * shift).sum(axis=tuple(range(kernel.ndim - 1)))
    return (wide / (2 * scale)).astype(kernel.dtype), (bias + constant).astype(bias.dtype)
