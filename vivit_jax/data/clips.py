"""From records to clips, in TensorFlow's graph: frames read and decoded, cropped and resized in one go, flipped.

No Python runs in the graph: on this stack an exception beside a `py_function` hangs the process instead of ending it.
"""

from __future__ import annotations

import types
from collections.abc import Callable

from vivit_jax.data import index, sampling
from vivit_jax.data.host_tf import tf
from vivit_jax.data.sampling import ClipSpec

TENSORFLOW = types.SimpleNamespace(
    minimum=tf.minimum,
    maximum=tf.maximum,
    to_int=lambda x: tf.cast(tf.floor(x), tf.int64),
    to_float=lambda x: tf.cast(x, tf.float64),
    arange=lambda n: tf.range(n, dtype=tf.int64),
)
# Number of uniform draws that one training clip takes, and what each is for.
NUM_DRAWS = 6
_START, _CROP, _FLIP = 0, slice(1, 5), 5


# (video, frame numbers [K], window or None) -> uint8 [K, h, w, 3]; a window is int32 [4]: top, left, height, width.
Reader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor]


def record_reader(split: index.RecordSplit) -> Reader:
    """Reads frames from the shards: only the chunks that hold them, only the pixels of the window."""
    shards = tf.constant(split.shard_paths)
    first = tf.constant(split.first_chunk)
    shard, offset = tf.constant(split.chunk_shard), tf.constant(split.chunk_offset)
    size = split.chunk_frames

    def read(video, frames, window=None):
        low, high = tf.reduce_min(frames) // size, tf.reduce_max(frames) // size
        chunk = first[video] + low
        # One pass from the first chunk needed to the last: a video's chunks lie one behind the other.
        count = high - low + 1
        chunks = records_from(shards[shard[chunk]], offset[chunk]).take(count)
        chunks = chunks.batch(count, drop_remainder=True).get_single_element()
        return frames_of_chunks(chunks, frames - low * size, window)

    return read


def records_from(path: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    """The records of one shard from the one that begins at byte `offset` on; each checked against its checksum."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=tf.constant(256 * 1024, tf.int64),
        byte_offsets=offset[None],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def frames_of_chunks(chunks: tf.Tensor, numbers: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    """Frames `numbers` [K], counted from the first of the serialised chunks [C]: uint8 [K, h, w, 3]."""
    parsed = tf.io.parse_example(chunks, {"frames": tf.io.RaggedFeature(tf.string)})
    return decode_frames(tf.gather(parsed["frames"].flat_values, numbers), window)


def decode_frames(jpegs: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    """JPEG bytes [K] -> uint8 [K, h, w, 3], all of each frame or only `window`."""
    if window is None:
        decode = lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")  # noqa: E731
    else:
        decode = lambda jpeg: tf.io.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_ACCURATE")  # noqa: E731
    return tf.map_fn(decode, jpegs, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))


def memory_reader(frames: tf.Tensor) -> Reader:
    """Reads frames that lie in memory: uint8 [T, H, W, 3], of one video (the number of the video is ignored)."""

    def read(video, numbers, window=None):
        del video
        return cut(tf.gather(frames, numbers), window)

    return read


def cut(images: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    """The window (top, left, height, width) of images [K, H, W, C]."""
    if window is None:
        return images
    return images[:, window[0] : window[0] + window[2], window[1] : window[1] + window[3]]


def train_clip(read: Reader, video, num_frames, height, width, spec: ClipSpec, draws) -> tf.Tensor:
    """A training clip: uint8 [T, h, w, 3].

    Args:
      read: of the video's frames.
      video: its number.
      num_frames, height, width: of the video as stored, int64.
      spec: of the clip.
      draws: float64 [NUM_DRAWS], uniform in [0, 1).
    """
    crop_h, crop_w = spec.image_size
    numbers = sampling.train_frames(num_frames, spec.num_frames, spec.stride, draws[_START], TENSORFLOW)
    box = sampling.train_window(
        height, width, spec.short_side, crop_h, crop_w, spec.scale_jitter, spec.random_crop,
        tf.unstack(draws[_CROP], num=4), TENSORFLOW,
    )  # fmt: skip
    window = tf.cast(tf.stack([box.top, box.left, box.height, box.width]), tf.int32)
    clip = resize(read(video, numbers, window), spec.image_size)
    if spec.flip > 0:
        clip = tf.cond(draws[_FLIP] < spec.flip, lambda: tf.reverse(clip, [2]), lambda: clip)
    return tf.ensure_shape(clip, [spec.num_frames, crop_h, crop_w, 3])


def views(read: Reader, video, num_frames, height, width, spec: ClipSpec, temporal: int, spatial: int) -> tf.Tensor:
    """All test views of a video: uint8 [temporal * spatial, T, h, w, 3], the views of the first clip first.

    Arguments as `train_clip`; `temporal` clips evenly over the video, `spatial` crops along the longer side of each.
    """
    crop_h, crop_w = spec.image_size
    numbers = tf.concat(
        [
            sampling.view_frames(num_frames, spec.num_frames, spec.stride, temporal, i, TENSORFLOW)
            for i in range(temporal)
        ],
        0,
    )
    # Clips overlap in short videos: every frame is decoded and resized once.
    unique, places = tf.unique(numbers)
    rows, columns = sampling.resized(height, width, spec.short_side, crop_h, crop_w, TENSORFLOW)
    boxes = [sampling.view_crop(rows, columns, crop_h, crop_w, spatial, i, TENSORFLOW) for i in range(spatial)]
    frames = resize(read(video, unique, None), tf.stack([rows, columns]))
    crops = [
        tf.reshape(
            tf.gather(frames[:, box.top : box.top + crop_h, box.left : box.left + crop_w], places),
            [temporal, 1, spec.num_frames, crop_h, crop_w, 3],
        )
        for box in boxes
    ]
    return tf.reshape(tf.concat(crops, 1), [temporal * spatial, spec.num_frames, crop_h, crop_w, 3])


def resize(frames: tf.Tensor, size) -> tf.Tensor:
    """Frames uint8 [K, H, W, 3] -> uint8 [K, h, w, 3], bilinear with half-pixel centres; as they are if of that size.

    When shrinking to less than three quarters, pixels would be skipped: the kernel is then widened against aliasing.
    """
    size, stored = tf.cast(size, tf.int32), tf.shape(frames)[1:3]
    scale = tf.cast(size, tf.float32) / tf.cast(stored, tf.float32)

    def narrow():
        return tf.raw_ops.ResizeBilinear(images=frames, size=size, half_pixel_centers=True)

    def wide():
        return tf.raw_ops.ScaleAndTranslate(
            images=frames, size=size, scale=scale, translation=[0.0, 0.0], kernel_type="triangle", antialias=True
        )

    def resampled():
        # Four times as slow as the plain kernel, so only where it makes a difference.
        return tf.cast(tf.cond(tf.reduce_min(scale) < 0.75, wide, narrow) + 0.5, tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(size, stored)), lambda: frames, resampled)
