"""Clips from frames, in TensorFlow's graph: read and decode, crop and resize in one step, flip.

The graph calls no Python: an exception next to a `py_function` hangs TensorFlow 2.21 instead of ending the process.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.reader import Finish, Reader, memory_reader
from vivit_jax.data.selection import sampling
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.utils import storage


def train_clip(read: Reader, video, num_frames, height, width, spec: ClipSpec, draws, may_flip=True) -> tf.Tensor:
    """Makes a training clip: uint8 [T, h, w, 3], of `video`, the number that `read` expects.

    `num_frames`, `height`, `width` (int64) are the size of the stored video; `draws` float64 [num_draws(spec)] are
    uniform in [0, 1); `may_flip`: bool [].
    """
    frames = sampling.train_frames(num_frames, spec, draws, tf.experimental.numpy)
    window = _as_tensor(*sampling.train_window(height, width, spec, draws, tf.experimental.numpy))
    clip = resized(lambda finish: read(video, frames, window, finish), window[2:], spec.image_size)
    clip = tf.ensure_shape(clip, [spec.num_frames, *spec.image_size, 3])
    if spec.flip_probability > 0:
        # As one tall image, which TensorFlow mirrors twice as fast as a clip.
        tall = tf.reshape(clip, [-1, spec.image_size[1], 3])
        flipped = tf.logical_and(sampling.is_flipped(spec, draws), may_flip)
        tall = tf.cond(flipped, lambda: tf.reverse(tall, [1]), lambda: tall)
        clip = tf.reshape(tall, clip.shape)
    return clip


def train_region(
    read: Reader, video, num_frames, height, width, spec: ClipSpec, draws, size: tuple[int, int]
) -> tf.Tensor:
    """Reads the part of the frames around the window of a training clip: uint8 [T, *size, 3].

    `size` holds every window (`sampling.largest_window`); smaller frames are padded with zeros. See `train_clip`.
    """
    frames = sampling.train_frames(num_frames, spec, draws, tf.experimental.numpy)
    box = sampling.train_window(height, width, spec, draws, tf.experimental.numpy)
    region = _as_tensor(*_region_around(box, height, width, size))
    clip = read(video, frames, region)
    missing = tf.constant(size) - region[2:]
    pad = lambda: tf.pad(clip, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])  # noqa: E731
    return tf.ensure_shape(tf.cond(tf.reduce_any(missing > 0), pad, lambda: clip), [spec.num_frames, *size, 3])


def window_in_region(height, width, spec: ClipSpec, draws, size: tuple[int, int], may_flip=True) -> tf.Tensor:
    """Returns the window of a training clip within its `train_region`, for `augment.resize_windows`: int32 [5].

    That is first row, first column, rows, columns, and 1 if the clip is flipped, else 0.
    """
    box = sampling.train_window(height, width, spec, draws, tf.experimental.numpy)
    region = _region_around(box, height, width, size)
    flipped = tf.cast(tf.logical_and(sampling.is_flipped(spec, draws), may_flip), tf.int64)
    return _as_tensor(box.top - region.top, box.left - region.left, box.height, box.width, flipped)


def _region_around(box: sampling.Box, height, width, size: tuple[int, int]) -> sampling.Box:
    """Returns a region of `size`, or of the frame's size where that is smaller, which holds the window `box`."""
    rows, columns = tf.minimum(height, size[0]), tf.minimum(width, size[1])
    return sampling.Box(tf.minimum(box.top, height - rows), tf.minimum(box.left, width - columns), rows, columns)


def _as_tensor(*numbers) -> tf.Tensor:
    return tf.cast(tf.stack(numbers), tf.int32)


def views(read: Reader, video, num_frames, height, width, spec: ClipSpec, temporal: int, spatial: int) -> tf.Tensor:
    """Makes all test views of a video: uint8 [temporal * spatial, T, h, w, 3], temporal-major.

    Arguments as `train_clip`; `temporal` clips evenly over the video, `spatial` crops along the longer side of each.
    """
    crop_h, crop_w = spec.image_size
    frames = [sampling.view_frames(num_frames, spec, temporal, i, tf.experimental.numpy) for i in range(temporal)]
    # Clips overlap in short videos: every frame is decoded and resized once.
    unique, position = tf.unique(tf.concat(frames, 0))
    rows, columns = sampling.resized(height, width, spec, tf.experimental.numpy)
    stored, size = tf.stack([height, width]), tf.stack([rows, columns])
    images = resized(lambda finish: read(video, unique, None, finish), stored, size, check=True)
    crops = []
    for i in range(spatial):
        box = sampling.view_crop(rows, columns, spec, spatial, i, tf.experimental.numpy)
        crop = images[:, box.top : box.top + crop_h, box.left : box.left + crop_w]
        crops.append(tf.reshape(tf.gather(crop, position), [temporal, 1, spec.num_frames, crop_h, crop_w, 3]))
    return tf.reshape(tf.concat(crops, 1), [temporal * spatial, spec.num_frames, crop_h, crop_w, 3])


def resized(read: Callable[[Finish | None], tf.Tensor], stored, size, check: bool = False) -> tf.Tensor:
    """Resizes frames to uint8 [K, h, w, 3]: bilinear with half-pixel centres, antialiased below three quarters.

    `read` returns frames uint8 [K, H, W, 3], each passed through the function it is given; `stored` is (H, W), `size`
    (h, w). `check` raises an error for frames of another size than `stored`.
    """
    stored, size = tf.cast(stored, tf.int32), tf.cast(size, tf.int32)
    scale = tf.cast(size, tf.float32) / tf.cast(stored, tf.float32)

    def bilinear(frame):
        # TensorFlow resizes floats twice as fast as bytes; the half rounds.
        image = tf.cast(_checked(frame, stored) if check else frame, tf.float32)[None] + 0.5
        return tf.cast(tf.raw_ops.ResizeBilinear(images=image, size=size, half_pixel_centers=True), tf.uint8)[0]

    def antialiased(frame):
        # Four times as slow as the plain kernel, so only where it makes a difference.
        image = tf.raw_ops.ScaleAndTranslate(
            images=(_checked(frame, stored) if check else frame)[None], size=size, scale=scale, translation=[0.0, 0.0],
            kernel_type="triangle", antialias=True,
        )  # fmt: skip
        return tf.cast(image + 0.5, tf.uint8)[0]

    # One branch for all frames: a branch per frame would cost a tenth of the whole.
    same, shrinks = tf.reduce_all(tf.equal(size, stored)), tf.reduce_min(scale) < 0.75
    kernel = tf.where(same, 0, tf.where(shrinks, 2, 1))
    return tf.switch_case(kernel, [lambda: read(None), lambda: read(bilinear), lambda: read(antialiased)])


def _checked(frame: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Fails on a frame of another size, so that its video is masked instead of distorted."""
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(frame)[:2], size)]):
        return tf.identity(frame)


def views_from_file(
    path: storage.PathLike,
    spec: ClipSpec,
    temporal_views: int = 1,
    spatial_views: int = 1,
    short_side: int | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """Makes the test views of a video file, decoded as by a build, as `eval_batches` does: uint8 [V, T, h, w, 3].

    Which frames the views need follows from the number of frames. That is taken from the packets of the file; where it
    turns out to be another, the file is decoded again. No frame but one is in memory, beside the views. `short_side`
    and `fps` are the maxima of the data set's records (None: those of the source); `fps` is the rate of a folder of
    pictures. Raises decode.VideoError.
    """
    from vivit_jax.data.video import decode, encode

    cut = cutter(spec.image_size, spec.short_side, spatial_views)
    pixels = np.zeros((temporal_views, spatial_views, spec.num_frames, *spec.image_size, 3), np.uint8)
    kept = list(range(decode.count_packets(path))) if fps is None else []  # numbers in the file of the frames to use
    for _ in range(3):
        places: dict[int, list[tuple[int, int]]] = {}  # number in the file -> [(temporal view, position in it), ...]
        for view in range(temporal_views if kept else 0):
            for place, number in enumerate(sampling.view_frames(len(kept), spec, temporal_views, view)):
                places.setdefault(kept[number], []).append((view, place))
        selector = encode.FrameSelector(None, None, fps, lambda frame: frame.number)
        for number, frame in enumerate(decode.iterate_frames(path, short_side=short_side, fps=fps)):
            if number == 0:
                frame.image  # noqa: B018 (the first that is converted decides the size of all)
            if number in places:
                crops = cut(frame.image).numpy()
                for view, place in places[number]:
                    pixels[view, :, place] = crops
            selector.offer(types.SimpleNamespace(number=number, time=frame.time, fps=frame.fps, repaired=False))
        selector.finish()
        if selector.frames == kept:
            return pixels.reshape(-1, *pixels.shape[2:])
        kept = selector.frames
    raise decode.VideoError(f"{path}: the number of its frames changes from one reading to the next")


@functools.lru_cache(maxsize=8)
def cutter(image_size: tuple[int, int], short_side: int | None, spatial: int) -> Callable:
    """Returns the compiled function from a frame uint8 [H, W, 3] to its crops uint8 [spatial, h, w, 3]."""
    spec = ClipSpec(1, image_size, short_side=short_side)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def cut(image):
        one, (height, width) = tf.constant(1, tf.int64), tf.unstack(tf.shape(image, tf.int64)[:2])
        return views(memory_reader(image[None]), tf.constant(0, tf.int64), one, height, width, spec, 1, spatial)[:, 0]

    return cut
