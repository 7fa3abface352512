"""Which frames and which pixels of a video make a clip: index arithmetic, no pixels.

Every function takes numbers, NumPy arrays or TensorFlow tensors: `ops` is the module `numpy`, or the one of the same
functions in TensorFlow (`tf.experimental.numpy`). So the same code runs in the graph of the pipeline and in NumPy.
Randomness is an argument: `draws`, `num_draws(spec)` uniform numbers in [0, 1) of a training clip.

Frames and test views follow the reference (scenic at 4a38d47): the start of a training clip is uniform over those that
fit; n test clips start at `linspace(0, T - T_clip * stride, n)`; a video that is too short loops; height and width are
scaled by independent factors before a random crop; test crops are left, centre and right along the longer side (paper,
section 4.1 and appendix). Or one frame from each of T equal segments (Temporal Segment Networks, arXiv:1608.00859).
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from vivit_jax.utils.checks import at_least, one_of, within

# What each draw of a training clip decides; from `_SEGMENTS` on, the frame of each segment.
_START, _HEIGHT, _WIDTH, _TOP, _LEFT, _FLIP, _SEGMENTS = range(7)
SAMPLING = ("random_start", "segments")
FLIP_LABELS = ("keep", "swap")


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """The frames and pixels of a video that make a clip; jitter, crop, flip and clips_per_video are for training only.

    Attributes:
      scale_jitter: (low, high); height and width are scaled by independent uniform factors.
      sampling: `random_start`: T frames `stride` apart. `segments`: one frame from each of T equal segments of the
        video, at random in training, in the middle in evaluation; without stride.
      clips_per_video: clips of a video, adjacent in a batch (repeated augmentation, Hoffer et al., arXiv:1901.09335).
      flip_labels: `keep`: a flipped clip keeps its labels, as published. `swap`: it gets those of its mirror image, and
        clips of a class without a mirror image are not flipped (module `mirror`).
    """

    num_frames: int
    image_size: tuple[int, int]  # (height, width) of the crop in pixels
    stride: int = 1  # distance between frames of the clip, in frames of the video
    short_side: int | None = None  # pixels of the short side after resizing, before cropping; None: as stored
    scale_jitter: tuple[float, float] | None = None
    random_crop: bool = False  # crop at a uniformly random position, else in the centre
    flip_probability: float = 0.0  # of a left-right flip
    sampling: str = "random_start"
    clips_per_video: int = 1
    flip_labels: str = "keep"

    def __post_init__(self):
        if len(tuple(self.image_size)) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size={self.image_size} must be (height, width), both at least 1 pixel")
        object.__setattr__(self, "image_size", tuple(int(x) for x in self.image_size))
        at_least("", self, num_frames=1, stride=1, clips_per_video=1)
        within("", self, "[0, 1]", "flip_probability")
        one_of("", self, flip_labels=FLIP_LABELS, sampling=SAMPLING)
        if self.short_side is not None and self.short_side < min(self.image_size):
            advice = f"raise it to {min(self.image_size)} or more, or make image_size smaller"
            raise ValueError(f"short_side={self.short_side} is smaller than the crop {self.image_size}: {advice}")
        jitter = (1, 1) if self.scale_jitter is None else self.scale_jitter
        if not (isinstance(jitter, (tuple, list)) and len(jitter) == 2 and 0 < jitter[0] <= jitter[1]):
            raise ValueError(f"scale_jitter={jitter} must be (low, high) with 0 < low <= high")
        if self.sampling == "segments" and self.stride != 1:
            spread = "sampling='segments' spreads the frames over the whole video"
            raise ValueError(f"stride={self.stride}, but {spread}: leave it at 1")


class Box(NamedTuple):
    """A rectangle of pixels: first row, first column, rows, columns."""

    top: Any
    left: Any
    height: Any
    width: Any


def num_draws(spec: ClipSpec) -> int:
    """Returns the number of uniform draws that a training clip takes."""
    return _SEGMENTS + (spec.num_frames if spec.sampling == "segments" else 0)


def is_flipped(spec: ClipSpec, draws):
    """Returns whether a training clip with these draws is flipped: bool []."""
    return draws[_FLIP] < spec.flip_probability


def train_frames(num_frames, spec: ClipSpec, draws, ops=np):
    """Returns the frame numbers of a training clip, by `spec.sampling`: int64 [spec.num_frames].

    `random_start`: `spec.stride` apart from a random start on; a short video loops. `segments`: one at a random place
    in each segment; a short video repeats frames.
    """
    frames = ops.arange(spec.num_frames, dtype=np.int64)
    if spec.sampling == "segments":
        position = (_to_float(frames, ops) + draws[_SEGMENTS:]) * _to_float(num_frames, ops) / spec.num_frames
        return ops.minimum(_floor(position, ops), num_frames - 1)
    choices = ops.maximum(num_frames - spec.num_frames * spec.stride, 0) + 1
    start = ops.minimum(_floor(draws[_START] * _to_float(choices, ops), ops), choices - 1)
    return (start + frames * spec.stride) % num_frames


def _floor(x, ops):
    return ops.asarray(ops.floor(x), dtype=np.int64)


def _to_float(x, ops):
    return ops.asarray(x, dtype=np.float64)


def _evenly_spaced(last, count: int, number):
    """Returns element `number` of `count` evenly spaced integers from 0 to `last`; a single one is 0."""
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


def view_frames(num_frames, spec: ClipSpec, clips: int, clip, ops=np):
    """Returns the frame numbers of test clip `clip` of `clips`, by `spec.sampling`: int64 [spec.num_frames].

    `random_start`: evenly spread over the video, from `int(linspace(0, max(0, T - T_clip * stride), clips)[clip])` on,
    computed in integers. `segments`: of each segment the middle of part number `clip`.
    """
    frames = ops.arange(spec.num_frames, dtype=np.int64)
    if spec.sampling == "segments":
        return _middle_of_part(num_frames, clips * spec.num_frames, frames * clips + clip)
    last = ops.maximum(num_frames - spec.num_frames * spec.stride, 0)
    return (_evenly_spaced(last, clips, clip) + frames * spec.stride) % num_frames


def repeated_views(num_frames, height, width, spec: ClipSpec, temporal: int, spatial: int) -> np.ndarray:
    """Returns the videos, of sizes int [N], with too few frames or pixels for different test views: bool [N]."""
    frames, height, width = (np.asarray(x, np.int64) for x in (num_frames, height, width))
    result = np.zeros(len(frames), bool)
    # Views only move forwards: if two are equal, two neighbours are.
    views = [view_frames(frames[:, None], spec, temporal, i) for i in range(temporal)]
    for view, other in itertools.pairwise(views):
        result |= (view == other).all(axis=1)
    boxes = [view_crop(*resized(height, width, spec), spec, spatial, i) for i in range(spatial)]
    for box, other in itertools.pairwise(boxes):
        result |= (box.top == other.top) & (box.left == other.left)
    return result


def _scale(height, width, spec: ClipSpec, ops):
    """Returns the factor that makes the short side `short_side` (None: 1), or more, so that the crop fits the frame."""
    h, w = _to_float(height, ops), _to_float(width, ops)
    scale = _to_float(1, ops) if spec.short_side is None else spec.short_side / ops.minimum(h, w)
    return ops.maximum(scale, ops.maximum(spec.image_size[0] / h, spec.image_size[1] / w))


def train_window(height, width, spec: ClipSpec, draws, ops=np) -> Box:
    """Returns the window of a stored frame that, resized to the crop's size, is the frame of a training clip.

    It is what would remain, to within half a stored pixel, if the frame were resized (short side to `short_side`, then
    height and width by independent factors, enlarged until the crop fits) and cropped; the rest is never decoded.
    """
    scale, jitter = _scale(height, width, spec, ops), spec.scale_jitter

    def along_axis(size, crop, factor, position):
        axis_scale = scale if jitter is None else scale * (jitter[0] + (jitter[1] - jitter[0]) * factor)
        window = ops.minimum(ops.maximum(_floor(crop / axis_scale + 0.5, ops), 1), size)
        free = size - window
        if not spec.random_crop:
            return free // 2, window
        return ops.minimum(_floor(position * _to_float(free + 1, ops), ops), free), window

    top, rows = along_axis(height, spec.image_size[0], draws[_HEIGHT], draws[_TOP])
    left, columns = along_axis(width, spec.image_size[1], draws[_WIDTH], draws[_LEFT])
    return Box(top, left, rows, columns)


def largest_window(height, width, spec: ClipSpec) -> tuple[int, int]:
    """Returns the (height, width) that hold every `train_window` of videos of sizes int [N]."""
    sizes = np.unique(np.stack([np.asarray(height), np.asarray(width)], 1), axis=0).T
    # The smallest factor of the scale jitter makes the largest window.
    box = train_window(*sizes, spec, np.zeros(num_draws(spec)))
    return int(box.height.max()), int(box.width.max())


def resized(height, width, spec: ClipSpec, ops=np):
    """Returns (height, width), int64, of a frame resized to `short_side` (None: as stored), or more to fit the crop."""
    scale = _scale(height, width, spec, ops)
    rows, columns = (_floor(_to_float(side, ops) * scale + 0.5, ops) for side in (height, width))
    return ops.maximum(rows, spec.image_size[0]), ops.maximum(columns, spec.image_size[1])


def view_crop(height, width, spec: ClipSpec, crops: int, crop: int, ops=np) -> Box:
    """Returns test crop `crop` of `crops` of a resized frame: evenly along the longer side, centred along the other.

    One crop is central; three are left, centre, right (landscape frames) or top, centre, bottom (portrait frames).
    """
    crop_height, crop_width = spec.image_size
    down, across = height - crop_height, width - crop_width
    if crops == 1:
        return Box(down // 2, across // 2, crop_height, crop_width)
    # 1 if the frame is upright, else 0: arithmetic instead of a branch, for tensors.
    upright = ops.minimum(ops.maximum(height - width, 0), 1)
    along, middle = 2 * crop, crops - 1
    top = (down * (upright * along + (1 - upright) * middle)) // (2 * middle)
    left = (across * (upright * middle + (1 - upright) * along)) // (2 * middle)
    return Box(top, left, crop_height, crop_width)
