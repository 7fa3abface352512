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
