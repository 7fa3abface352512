"""Which frames and which pixels of a video make a clip: index arithmetic, no pixels.

Every function takes plain numbers, NumPy arrays or TensorFlow tensors, since it uses nothing but arithmetic operators
and the handful of functions in `ops`; randomness comes in as uniform draws. The same code therefore runs in the graph
of the pipeline and in NumPy, where the tests check it.

Frames and test views follow the reference (scenic at 4a38d47): the start of a training clip is uniform over those that
fit; n test clips start at `linspace(0, T - T_clip * stride, n)`; a video that is too short loops; height and width are
scaled by independent factors before a random crop; test crops are left, centre and right along the longer side (paper,
section 4.1 and appendix). The other choice of frames, one from each of T equal segments, is that of Temporal Segment
Networks (Wang et al., 2016, arXiv:1608.00859).
"""

from __future__ import annotations

import dataclasses
import itertools
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


SAMPLING = ("random_start", "segments")
FLIP_LABELS = ("keep", "swap")


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What a clip is: the frames and pixels of a video that the model is given.

    Attributes:
      num_frames: T, frames of a clip.
      stride: distance between them, in frames of the video.
      image_size: (height, width) of the crop in pixels.
      short_side: the frame's short side is resized to this many pixels before cropping; None leaves it as stored.
      scale_jitter: (low, high); height and width are then scaled by independent uniform factors. Training only.
      random_crop: crop at a uniformly random place; otherwise in the middle. Training only.
      flip_probability: probability of a left-right flip. Training only.
      flip_labels: `keep`: a flipped clip keeps its labels, as published. `swap`: it gets those of its mirror image, and
        a clip with a class whose mirror image is none is not flipped (module `mirror`).
      sampling: `random_start`: T frames `stride` apart. `segments`: one frame from each of T equal segments of the
        video, at random in training, in the middle in evaluation; it has no stride.
      clips_per_video: clips of one video, each with its own random choices, side by side in a batch (repeated
        augmentation, Hoffer et al., 2020, arXiv:1901.09335). Training only.

    Raises:
      ValueError: a field outside its range; the message names it.
    """

    num_frames: int
    image_size: tuple[int, int]
    stride: int = 1
    short_side: int | None = None
    scale_jitter: tuple[float, float] | None = None
    random_crop: bool = False
    flip_probability: float = 0.0
    sampling: str = "random_start"
    clips_per_video: int = 1
    flip_labels: str = "keep"

    def __post_init__(self):
        if len(tuple(self.image_size)) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be (height, width), both at least 1 pixel")
        object.__setattr__(self, "image_size", tuple(int(x) for x in self.image_size))
        for name in ("num_frames", "stride", "clips_per_video"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.short_side is not None and self.short_side < min(self.image_size):
            raise ValueError(
                f"short_side is {self.short_side}, smaller than the crop {self.image_size}: "
                f"raise it to {min(self.image_size)} or more, or make image_size smaller"
            )
        jitter = self.scale_jitter
        pair = isinstance(jitter, (tuple, list)) and len(jitter) == 2
        if jitter is not None and not (pair and 0 < jitter[0] <= jitter[1]):
            raise ValueError(f"scale_jitter is {self.scale_jitter}; it must be (low, high) with 0 < low <= high")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}; it is a probability, 0 to 1")
        if self.flip_labels not in FLIP_LABELS:
            raise ValueError(f"flip_labels is {self.flip_labels!r}; choose one of {', '.join(FLIP_LABELS)}")
        if self.sampling not in SAMPLING:
            raise ValueError(f"sampling is {self.sampling!r}; choose one of {', '.join(SAMPLING)}")
        if self.sampling == "segments" and self.stride != 1:
            raise ValueError(
                f"stride is {self.stride}, but sampling='segments' spreads the frames over the whole video and has no "
                "stride: leave it at 1"
            )


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of pixels: first row, first column, rows, columns."""

    top: Any
    left: Any
    height: Any
    width: Any


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


def segment_frames(num_frames, clip_frames: int, draws, ops=NUMPY):
    """One frame from each of `clip_frames` equal segments of a video: int64 [clip_frames], never falling.

    Frame i is `floor((i + draws[i]) * num_frames / clip_frames)`; a video shorter than the clip repeats frames.

    Args:
      num_frames: of the video, >= 1.
      draws: uniforms in [0, 1), [clip_frames]: the place within each segment.
    """
    place = (ops.to_float(ops.arange(clip_frames)) + draws) * ops.to_float(num_frames) / clip_frames
    return ops.minimum(ops.to_int(place), num_frames - 1)


def segment_view_frames(num_frames, clip_frames: int, clips: int, clip, ops=NUMPY):
    """Frame numbers of test clip `clip` of `clips` where training takes `segment_frames`: int64 [clip_frames].

    Each segment is cut into `clips` parts, and clip v takes the middle of part v: with one clip, of the segment.
    In integers: `floor((i + (v + 1/2) / clips) * num_frames / clip_frames)`.
    """
    return _middle_of_part(num_frames, clips * clip_frames, ops.arange(clip_frames) * clips + clip)


def view_frames(num_frames, clip_frames: int, stride: int, clips: int, clip, ops=NUMPY):
    """Frame numbers of test clip number `clip` of `clips`, evenly spread over the video: int64 [clip_frames].

    The start is `int(linspace(0, max(0, T - T_clip * stride), clips)[clip])`, in integers: libraries agree on those.
    """
    last = ops.maximum(num_frames - clip_frames * stride, 0)
    start = _evenly_spaced(last, clips, clip)
    return (start + ops.arange(clip_frames) * stride) % num_frames


def _evenly_spaced(last, count: int, number):
    """Element `number` of `count` integers from 0 to `last`, evenly spaced; a single one is 0."""
    return (last * number) // max(count - 1, 1)


def _middle_of_part(total, parts: int, part):
    """The middle of part number `part` of `parts` equal parts of [0, total), rounded down."""
    return ((2 * part + 1) * total) // (2 * parts)


def select_views(total: int, count: int, sampling: str = "random_start") -> tuple[int, ...]:
    """Selects the `count` of `total` temporal views that are nearest to those of an evaluation with `count` views.

    Consecutive frames: from the first view to the last, evenly spaced. Segments: the middle of each of `count` parts.
    """
    if sampling == "segments":
        return tuple(_middle_of_part(total, count, i) for i in range(count))
    return tuple(_evenly_spaced(total - 1, count, i) for i in range(count))


def clip_frames_of_view(num_frames, spec: ClipSpec, clips: int, clip, ops=NUMPY):
    """Frame numbers of test clip `clip` of `clips` as `spec.sampling` chooses them: int64 [spec.num_frames]."""
    if spec.sampling == "segments":
        return segment_view_frames(num_frames, spec.num_frames, clips, clip, ops)
    return view_frames(num_frames, spec.num_frames, spec.stride, clips, clip, ops)


def repeated_views(num_frames, height, width, spec: ClipSpec, temporal: int, spatial: int) -> np.ndarray:
    """Videos of which two test views are the same: bool [N]. They have too few frames for that many clips, or too few
    pixels for that many crops.

    Args:
      num_frames, height, width: int [N], of the videos as stored.
      spec: of the clips.
      temporal, spatial: test clips, and crops of each.
    """
    frames, height, width = (np.asarray(x, np.int64) for x in (num_frames, height, width))
    result = np.zeros(len(frames), bool)
    # Views only move forwards: where two are the same, two neighbours are.
    before = None
    for i in range(temporal):
        now = clip_frames_of_view(frames[:, None], spec, temporal, i)
        result |= False if before is None else (before == now).all(axis=1)
        before = now
    size = resized(height, width, spec.short_side, *spec.image_size)
    boxes = [view_crop(*size, *spec.image_size, spatial, i) for i in range(spatial)]
    for box, other in itertools.pairwise(boxes):
        result |= (box.top == other.top) & (box.left == other.left)
    return result


def _scale(height, width, short_side: int | None, crop_height: int, crop_width: int, ops):
    """Factor that makes the short side `short_side` (None: 1), or greater, so that the crop fits into the frame."""
    h, w = ops.to_float(height), ops.to_float(width)
    scale = ops.to_float(1) if short_side is None else short_side / ops.minimum(h, w)
    return ops.maximum(scale, ops.maximum(crop_height / h, crop_width / w))


def train_window(
    height,
    width,
    short_side: int | None,
    crop_height: int,
    crop_width: int,
    jitter: tuple[float, float] | None,
    random: bool,
    draws,
    ops=NUMPY,
) -> Box:
    """The part of a stored frame that becomes the training clip, once it is resized to the crop's size.

    It is the part that would remain if the frame were resized (short side to `short_side`, then height and width by
    independent factors) and cropped, to within half a stored pixel, and is all of the frame that need be decoded.

    Args:
      height, width: of the frame as stored, int64.
      short_side: None leaves the frame's scale. Frames smaller than the crop are enlarged until it fits.
      crop_height, crop_width: pixels of the crop.
      jitter: (low, high): height and width are scaled by independent factors, uniform between them; None for none.
      random: the place is uniform over all; otherwise central.
      draws: four uniforms in [0, 1): height factor, width factor, top, left.
    """
    scale = _scale(height, width, short_side, crop_height, crop_width, ops)
    box = []
    for size, crop, factor, place in (
        (height, crop_height, draws[0], draws[2]),
        (width, crop_width, draws[1], draws[3]),
    ):
        along = scale if jitter is None else scale * (jitter[0] + (jitter[1] - jitter[0]) * factor)
        window = ops.minimum(ops.maximum(ops.to_int(crop / along + 0.5), 1), size)
        free = size - window
        start = ops.minimum(ops.to_int(place * ops.to_float(free + 1)), free) if random else free // 2
        box.append((start, window))
    return Box(box[0][0], box[1][0], box[0][1], box[1][1])


def resized(height, width, short_side: int | None, crop_height: int, crop_width: int, ops=NUMPY):
    """(height, width) of a frame whose short side is made `short_side` (None: left as it is), int64.

    Never smaller than the crop: a frame that is too small is enlarged until the crop fits into it.
    """
    scale = _scale(height, width, short_side, crop_height, crop_width, ops)
    return (
        ops.maximum(ops.to_int(ops.to_float(height) * scale + 0.5), crop_height),
        ops.maximum(ops.to_int(ops.to_float(width) * scale + 0.5), crop_width),
    )


def view_crop(height, width, crop_height: int, crop_width: int, crops: int, crop: int, ops=NUMPY) -> Box:
    """Test crop number `crop` of `crops` in a resized frame: evenly along the longer side, central along the other.

    One crop is central; three are left, centre, right (landscape frames) or top, centre, bottom (portrait ones).
    """
    down, across = height - crop_height, width - crop_width
    if crops == 1:
        return Box(down // 2, across // 2, crop_height, crop_width)
    # 1 where the frame is upright: arithmetic instead of a branch, for tensors.
    upright = ops.minimum(ops.maximum(height - width, 0), 1)
    along, middle = 2 * crop, crops - 1
    top = (down * (upright * along + (1 - upright) * middle)) // (2 * middle)
    left = (across * (upright * middle + (1 - upright) * along)) // (2 * middle)
    return Box(top, left, crop_height, crop_width)
