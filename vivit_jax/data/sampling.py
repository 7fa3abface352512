"""Which frames and which pixels of a video make a clip: index arithmetic, no pixels.

Every function takes plain numbers, NumPy arrays or TensorFlow tensors, since it uses nothing but arithmetic operators and
the handful of functions in `Ops`; randomness comes in as uniform draws. The same code therefore runs in the graph of the
pipeline and in NumPy, where the tests check it.

Frames and test views are the reference's (scenic, projects/vivit and dmvr's sampling, read at 4a38d47): the start of a
training clip is uniform over those that fit; n test clips start at `linspace(0, T - T_clip * stride, n)`; a video that is
too short loops; a random crop after a resize of height and width by independent factors; test crops left, centre and
right along the longer side (paper, section 4.1 "Inference" and the appendix).
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np

# The functions besides operators that the arithmetic needs. `pipeline` has the same table for TensorFlow.
NUMPY = types.SimpleNamespace(
    minimum=np.minimum,
    maximum=np.maximum,
    to_int=lambda x: np.asarray(np.floor(x)).astype(np.int64),
    to_float=lambda x: np.asarray(x, np.float64),
    arange=lambda n: np.arange(n, dtype=np.int64),
)


@dataclasses.dataclass(frozen=True)
class CropBox:
    """A resize and the crop after it, in pixels: the frame becomes `height` x `width`, the crop begins at (`top`, `left`)."""

    height: Any
    width: Any
    top: Any
    left: Any


def train_frames(num_frames, clip_frames: int, stride: int, draw, ops=NUMPY):
    """Frame numbers of a training clip: int64 [clip_frames], start uniform over the starts that fit.

    Args:
      num_frames: of the video, >= 1.
      clip_frames, stride: the clip spans `clip_frames * stride` frames (the reference counts the last stride too).
      draw: uniform in [0, 1).
    """
    choices = ops.maximum(num_frames - clip_frames * stride, 0) + 1
    start = ops.minimum(ops.to_int(draw * ops.to_float(choices)), choices - 1)
    return (start + ops.arange(clip_frames) * stride) % num_frames


def view_frames(num_frames, clip_frames: int, stride: int, clips: int, clip, ops=NUMPY):
    """Frame numbers of test clip number `clip` of `clips`, evenly spread over the video: int64 [clip_frames].

    The start is `int(linspace(0, max(0, T - T_clip * stride), clips)[clip])`, in integers, so that every library agrees.
    """
    last = ops.maximum(num_frames - clip_frames * stride, 0)
    start = (last * clip) // max(clips - 1, 1)
    return (start + ops.arange(clip_frames) * stride) % num_frames


def resized(height, width, short_side: int | None, crop_height: int, crop_width: int, ops=NUMPY):
    """(height, width) of a frame whose short side is made `short_side` (None: left as it is), int64.

    Never smaller than the crop: a frame that is too small is enlarged until the crop fits into it.
    """
    h, w = ops.to_float(height), ops.to_float(width)
    scale = ops.to_float(1) if short_side is None else short_side / ops.minimum(h, w)
    scale = ops.maximum(scale, ops.maximum(crop_height / h, crop_width / w))
    return (
        ops.maximum(ops.to_int(h * scale + 0.5), crop_height),
        ops.maximum(ops.to_int(w * scale + 0.5), crop_width),
    )


def train_crop(
    height, width, crop_height: int, crop_width: int, jitter: tuple[float, float] | None, random: bool, draws, ops=NUMPY
) -> CropBox:
    """The box of a training clip.

    Args:
      height, width: of the frame after `resized`.
      crop_height, crop_width: pixels of the crop.
      jitter: (low, high): height and width are scaled by independent factors, uniform between them; None for no scaling.
        A factor that would make the frame smaller than the crop is raised until the crop fits.
      random: the crop's place is uniform over all; otherwise it is central.
      draws: four uniforms in [0, 1): height factor, width factor, top, left.
    """
    if jitter is not None:
        low, high = jitter
        height = ops.to_int(ops.to_float(height) * (low + (high - low) * draws[0]) + 0.5)
        width = ops.to_int(ops.to_float(width) * (low + (high - low) * draws[1]) + 0.5)
        height, width = ops.maximum(height, crop_height), ops.maximum(width, crop_width)
    if not random:
        return CropBox(height, width, (height - crop_height) // 2, (width - crop_width) // 2)
    rows, columns = height - crop_height + 1, width - crop_width + 1
    top = ops.minimum(ops.to_int(draws[2] * ops.to_float(rows)), rows - 1)
    left = ops.minimum(ops.to_int(draws[3] * ops.to_float(columns)), columns - 1)
    return CropBox(height, width, top, left)


def view_crop(height, width, crop_height: int, crop_width: int, crops: int, crop: int, ops=NUMPY) -> CropBox:
    """The box of test crop number `crop` of `crops`: spread evenly along the longer side, central along the other.

    One crop is central; three are left, centre, right (of a landscape frame) or top, centre, bottom (of a portrait one).
    """
    down, across = height - crop_height, width - crop_width
    if crops == 1:
        return CropBox(height, width, down // 2, across // 2)
    # 1 where the frame is upright: arithmetic instead of a branch, for tensors.
    upright = ops.minimum(ops.maximum(height - width, 0), 1)
    along, middle = 2 * crop, crops - 1
    top = (down * (upright * along + (1 - upright) * middle)) // (2 * middle)
    left = (across * (upright * middle + (1 - upright) * along)) // (2 * middle)
    return CropBox(height, width, top, left)
