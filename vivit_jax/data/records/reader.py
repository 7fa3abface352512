"""Reads frames from records in TensorFlow's graph: only the records that hold them, only the pixels of a window.

No Python runs in the graph: on this stack an exception beside a `py_function` hangs the process instead of ending it.
"""

from __future__ import annotations

from collections.abc import Callable

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.split import SEQUENCE, RecordSplit

# Feature list of the frames in a sequence (MediaSequence's name, which DMVR and Scenic share).
SEQUENCE_FRAMES = "image/encoded"


# Pixels a side of a JPEG's block where chroma has half the resolution: the largest that is usual.
_BLOCK = 16


# A frame uint8 [h, w, 3] -> the frame as it is wanted. Each is finished while it is still in the processor's cache, at
# half the cost of taking all frames of a clip through one step after the other.
Finish = Callable[[tf.Tensor], tf.Tensor]


# (video, frame numbers [K], window or None, finish or None) -> uint8 [K, h, w, 3]; a window is int32 [4]: top, left,
# height, width.
Reader = Callable[..., tf.Tensor]


def record_reader(split: RecordSplit) -> Reader:
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
    if form == SEQUENCE:
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
