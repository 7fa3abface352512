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
# Feature list of the frames in a sequence (MediaSequence's name, which DMVR and Scenic share).
SEQUENCE_FRAMES = "image/encoded"
# Number of uniform draws that one training clip takes, and what each is for; segments take one more a frame.
NUM_DRAWS = 6
_START, _CROP, _FLIP, _SEGMENTS = 0, slice(1, 5), 5, slice(6, None)
# Pixels a side of a JPEG's block where chroma has half the resolution: the largest that is usual.
_BLOCK = 16


# A frame uint8 [h, w, 3] -> the frame as it is wanted. Each is finished while it is still in the processor's cache, at
# half the cost of taking all frames of a clip through one step after the other.
Finish = Callable[[tf.Tensor], tf.Tensor]
# (video, frame numbers [K], window or None, finish or None) -> uint8 [K, h, w, 3]; a window is int32 [4]: top, left,
# height, width.
Reader = Callable[..., tf.Tensor]


def record_reader(split: index.RecordSplit) -> Reader:
    """Reads frames from the shards: only the records that hold them, only the pixels of the window."""
    shards = tf.constant(split.shard_paths)
    first = tf.constant(split.first_chunk)
    shard, offset = tf.constant(split.chunk_shard), tf.constant(split.chunk_offset)
    size = split.chunk_frames

    def read(video, frames, window=None, finish=None):
        low, high = tf.reduce_min(frames) // size, tf.reduce_max(frames) // size
        chunk = first[video] + low
        # One pass from the first chunk needed to the last: a video's chunks lie one behind the other. A sequence is one
        # chunk with all frames of its video.
        count = high - low + 1
        chunks = records_from(shards[shard[chunk]], offset[chunk]).take(count)
        chunks = chunks.batch(count, drop_remainder=True).get_single_element()
        return decode_frames(tf.gather(jpegs_of(split.form, chunks), frames - low * size), window, finish)

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


def jpegs_of(form: str, records: tf.Tensor) -> tf.Tensor:
    """The JPEGs of a video's serialised records, one behind the other: string [frames].

    Args:
      form: "chunks": records [C], consecutive; or "sequence": records [1].
    """
    if form == index.SEQUENCE:
        feature = tf.io.FixedLenSequenceFeature([], tf.string)
        return tf.io.parse_single_sequence_example(records[0], sequence_features={SEQUENCE_FRAMES: feature})[1][
            SEQUENCE_FRAMES
        ]
    return tf.io.parse_example(records, {"frames": tf.io.RaggedFeature(tf.string)})["frames"].flat_values


def decode_frames(jpegs: tf.Tensor, window: tf.Tensor | None, finish: Finish | None = None) -> tf.Tensor:
    """JPEG bytes [K] -> uint8 [K, h, w, 3], all of each frame or only `window`; each finished, if asked.

    The pixels of a window are those that the whole frame has there.
    """
    if window is not None:
        # Chroma is stored at half the resolution and interpolated: at the edge of what is decoded a neighbour is
        # missing, so that a column more is decoded on both sides. To the left the decoder begins at a block in any
        # case; asked for all of it, it spares a copy.
        top, left, height, width = tf.unstack(window)
        before = tf.where(left > 0, (left - 1) % _BLOCK + 1, 0)
        columns = tf.image.extract_jpeg_shape(jpegs[0])[1]
        beyond = tf.clip_by_value(columns - (left + width), 0, 1)
        window = tf.stack([top, left - before, height, before + width + beyond])

    def one(jpeg):
        if window is None:
            frame = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
        else:
            frame = tf.io.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_ACCURATE")
            frame = frame[:, before : before + width]
        return frame if finish is None else finish(frame)

    return _each(one, jpegs)


def _each(function: Callable[[tf.Tensor], tf.Tensor], items: tf.Tensor) -> tf.Tensor:
    # One after the other: the cores have other clips to work on.
    return tf.map_fn(
        function, items, parallel_iterations=1, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    )


def memory_reader(frames: tf.Tensor) -> Reader:
    """Reads frames that lie in memory: uint8 [T, H, W, 3], of one video (the number of the video is ignored)."""

    def read(video, numbers, window=None, finish=None):
        del video
        return cut(tf.gather(frames, numbers), window, finish)

    return read


def cut(images: tf.Tensor, window: tf.Tensor | None, finish: Finish | None = None) -> tf.Tensor:
    """The window (top, left, height, width) of images [K, H, W, C], each finished where `finish` is given."""
    if window is not None:
        images = images[:, window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
    return images if finish is None else _each(finish, images)


def num_draws(spec: ClipSpec) -> int:
    """Uniform draws that a training clip takes."""
    return NUM_DRAWS + (spec.num_frames if spec.sampling == "segments" else 0)


def is_flipped(spec: ClipSpec, draws) -> tf.Tensor:
    """Whether the draws of a clip say that it is flipped: bool []."""
    return draws[_FLIP] < spec.flip


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
    if spec.flip > 0:
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
