"""From records to clips, in TensorFlow's graph: frames read and decoded, cropped and resized in one go, flipped.

No Python runs in the graph: on this stack an exception beside a `py_function` hangs the process instead of ending it.
"""

from __future__ import annotations

import types
from collections.abc import Callable

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.reader import Finish, Reader
from vivit_jax.data.selection import sampling
from vivit_jax.data.selection.sampling import ClipSpec

TENSORFLOW = types.SimpleNamespace(
    minimum=tf.minimum,
    maximum=tf.maximum,
    to_int=lambda x: tf.cast(tf.floor(x), tf.int64),
    to_float=lambda x: tf.cast(x, tf.float64),
    arange=lambda n: tf.range(n, dtype=tf.int64),
)
# Number of uniform draws that one training clip takes, and what each is for; segments take one more a frame.
NUM_DRAWS = 6
_START, _CROP, _FLIP, _SEGMENTS = 0, slice(1, 5), 5, slice(6, None)


def num_draws(spec: ClipSpec) -> int:
    """Uniform draws that a training clip takes."""
    return NUM_DRAWS + (spec.num_frames if spec.sampling == "segments" else 0)


def is_flipped(spec: ClipSpec, draws) -> tf.Tensor:
    """Whether the draws of a clip say that it is flipped: bool []."""
    return draws[_FLIP] < spec.flip_probability


def train_clip(read: Reader, video, num_frames, height, width, spec: ClipSpec, draws, may_flip=True) -> tf.Tensor:
    """A training clip: uint8 [T, h, w, 3].

    Args:
      read: of the video's frames.
      video: its number.
      num_frames, height, width: of the video as stored, int64.
      spec: of the clip.
      draws: float64 [num_draws(spec)], uniform in [0, 1).
      may_flip: bool [], whether the clip may be flipped at all.
    """
    crop_h, crop_w = spec.image_size
    if spec.sampling == "segments":
        numbers = sampling.segment_frames(num_frames, spec.num_frames, draws[_SEGMENTS], TENSORFLOW)
    else:
        numbers = sampling.train_frames(num_frames, spec.num_frames, spec.stride, draws[_START], TENSORFLOW)
    box = sampling.train_window(
        height, width, spec.short_side, crop_h, crop_w, spec.scale_jitter, spec.random_crop,
        tf.unstack(draws[_CROP], num=4), TENSORFLOW,
    )  # fmt: skip
    window = tf.cast(tf.stack([box.top, box.left, box.height, box.width]), tf.int32)
    clip = resized(lambda finish: read(video, numbers, window, finish), window[2:], spec.image_size)
    clip = tf.ensure_shape(clip, [spec.num_frames, crop_h, crop_w, 3])
    if spec.flip_probability > 0:
        # As one tall picture, which TensorFlow mirrors twice as fast as a clip.
        tall = tf.reshape(clip, [-1, crop_w, 3])
        tall = tf.cond(tf.logical_and(is_flipped(spec, draws), may_flip), lambda: tf.reverse(tall, [1]), lambda: tall)
        clip = tf.reshape(tall, clip.shape)
    return clip


def views(read: Reader, video, num_frames, height, width, spec: ClipSpec, temporal: int, spatial: int) -> tf.Tensor:
    """All test views of a video: uint8 [temporal * spatial, T, h, w, 3], the views of the first clip first.

    Arguments as `train_clip`; `temporal` clips evenly over the video, `spatial` crops along the longer side of each.
    """
    crop_h, crop_w = spec.image_size
    numbers = tf.concat(
        [sampling.clip_frames_of_view(num_frames, spec, temporal, i, TENSORFLOW) for i in range(temporal)],
        0,
    )
    # Clips overlap in short videos: every frame is decoded and resized once.
    unique, places = tf.unique(numbers)
    rows, columns = sampling.resized(height, width, spec.short_side, crop_h, crop_w, TENSORFLOW)
    boxes = [sampling.view_crop(rows, columns, crop_h, crop_w, spatial, i, TENSORFLOW) for i in range(spatial)]
    frames = resized(
        lambda finish: read(video, unique, None, finish),
        tf.stack([height, width]),
        tf.stack([rows, columns]),
        check=True,
    )
    crops = [
        tf.reshape(
            tf.gather(frames[:, box.top : box.top + crop_h, box.left : box.left + crop_w], places),
            [temporal, 1, spec.num_frames, crop_h, crop_w, 3],
        )
        for box in boxes
    ]
    return tf.reshape(tf.concat(crops, 1), [temporal * spatial, spec.num_frames, crop_h, crop_w, 3])


def resized(read: Callable[[Finish | None], tf.Tensor], stored, size, check: bool = False) -> tf.Tensor:
    """Frames uint8 [K, H, W, 3] as `read` gives them -> uint8 [K, h, w, 3], bilinear with half-pixel centres.

    When shrinking to less than three quarters, pixels would be skipped: the kernel is then widened against aliasing.

    Args:
      read: reads the frames, each finished as it is told.
      stored: (H, W).
      size: (h, w); frames that have it stay as they are.
      check: frames of another size than `stored` may come, and are then an error.
    """
    stored, size = tf.cast(stored, tf.int32), tf.cast(size, tf.int32)
    scale = tf.cast(size, tf.float32) / tf.cast(stored, tf.float32)

    def narrow(frame):
        # As floats, of which TensorFlow makes pixels twice as fast as of bytes; the half rounds.
        image = tf.cast(_checked(frame, stored) if check else frame, tf.float32)[None] + 0.5
        return tf.cast(tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=True), tf.uint8)[0]

    def wide(frame):
        # Four times as slow as the plain kernel, so only where it makes a difference.
        image = tf.raw_ops.ScaleAndTranslate(
            images=(_checked(frame, stored) if check else frame)[None], size=size, scale=scale, translation=[0.0, 0.0],
            kernel_type="triangle", antialias=True,
        )  # fmt: skip
        return tf.cast(image + 0.5, tf.uint8)[0]

    # One choice for all frames: a choice for each would cost a tenth of the whole.
    same, shrinks = tf.reduce_all(tf.equal(size, stored)), tf.reduce_min(scale) < 0.75
    kind = tf.where(same, 0, tf.where(shrinks, 2, 1))
    return tf.switch_case(kind, [lambda: read(None), lambda: read(narrow), lambda: read(wide)])


def _checked(frame: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """The frame; an error where it is not of the size, so that its video is masked instead of distorted."""
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(frame)[:2], size)]):
        return tf.identity(frame)
