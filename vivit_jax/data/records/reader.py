"""Reads frames from records in TensorFlow's graph: only the records that hold them, only the pixels of a window.

The graph calls no Python: an exception next to a `py_function` hangs TensorFlow 2.21 instead of ending the process. So
records that cannot be read are found out after it: a storage that fails is waited for (`read_again`); broken records
are reported and limited (`Limit`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from absl import logging

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.split import SEQUENCE, RecordSplit

_T = TypeVar("_T")
PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before a storage that fails is read again
# Feature list of the frames in a sequence (MediaSequence's name, which DMVR and Scenic share).
SEQUENCE_FRAMES = "image/encoded"
# Side in pixels of a JPEG block where chroma has half the resolution: the largest in use.
_BLOCK = 16
# Chunks between those that are needed, of some 100 KB each, up to which one pass is faster than a pass for each.
_MAX_SKIPPED = 64
# Processes a frame uint8 [h, w, 3], e.g. resizes it. Frames are finished one by one while in the processor's cache, at
# half the cost of processing all frames of a clip step by step.
Finish = Callable[["tf.Tensor"], "tf.Tensor"]
# (video, frame numbers [K], window or None, finish or None) -> uint8 [K, h, w, 3]; window: top, left, height, width.
Reader = Callable[..., "tf.Tensor"]


def record_reader(split: RecordSplit) -> Reader:
    """Returns a reader of frames from the shards of a split."""
    names = list(map(os.fsencode, split.shard_paths))  # they may be no UTF-8
    arrays = names, split.first_chunk, split.chunk_shard, split.chunk_offset
    (shards, first, shard, offset), size = map(tf.constant, arrays), split.chunk_frames

    def read(video, frames, window=None, finish=None):
        # A sequence is one chunk with all frames of its video.
        needed = tf.unique(tf.sort(frames // size))[0]
        number, low = tf.size(needed, tf.int64), needed[0]
        count = needed[-1] - low + 1

        def one_pass():
            """Reads from the first needed chunk to the last: the chunks of a video are consecutive."""
            return tf.gather(batch(records_at(low).take(count), count), needed - low)

        def one_by_one():
            """Reads only the needed chunks: what lies between them in a long video would not fit into memory."""
            return batch(tf.data.Dataset.from_tensor_slices(needed).flat_map(lambda i: records_at(i).take(1)), number)

        def records_at(i):
            chunk = first[video] + i
            return records_from(shards[shard[chunk]], offset[chunk])

        def batch(records, length):
            return records.batch(length, drop_remainder=True).get_single_element()

        chunks = tf.cond(count - number > _MAX_SKIPPED, one_by_one, one_pass)
        position = tf.searchsorted(needed, frames // size, out_type=tf.int64) * size + frames % size
        return decode_frames(tf.gather(jpegs_of(split.form, chunks), position), window, finish)

    return read


def records_from(path: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    """Returns the records of a shard from byte `offset` on; verifies their checksums."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=tf.constant(256 * 1024, tf.int64),
        byte_offsets=offset[None],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def jpegs_of(form: str, records: tf.Tensor) -> tf.Tensor:
    """Returns the JPEGs in consecutive records of a video: string [frames]; a sequence is one record."""
    if form == SEQUENCE:
        # One JPEG to a feature as DMVR writes them, or all of a video in one feature.
        features = {SEQUENCE_FRAMES: tf.io.RaggedFeature(tf.string)}
        _, lists = tf.io.parse_single_sequence_example(records[0], sequence_features=features)
        return lists[SEQUENCE_FRAMES].flat_values
    return tf.io.parse_example(records, {"frames": tf.io.RaggedFeature(tf.string)})["frames"].flat_values


def decode_frames(jpegs: tf.Tensor, window: tf.Tensor | None, finish: Finish | None = None) -> tf.Tensor:
    """Decodes JPEGs [K] to uint8 [K, h, w, 3]: whole frames, or the window with the same pixels as the whole frame."""
    if window is not None:
        # Chroma is stored at half the resolution and interpolated, so a column at the edge lacks a neighbour: one more
        # is decoded on both sides, to the left the whole block, at which the decoder starts anyway: it saves a copy.
        top, left, height, width = tf.unstack(window)
        before = tf.where(left > 0, (left - 1) % _BLOCK + 1, 0)
        columns = tf.image.extract_jpeg_shape(jpegs[0])[1]
        beyond = tf.clip_by_value(columns - (left + width), 0, 1)
        window = tf.stack([top, left - before, height, before + width + beyond])

    def decode(jpeg):
        if window is None:
            frame = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
        else:
            frame = tf.io.decode_and_crop_jpeg(jpeg, window, channels=3, dct_method="INTEGER_ACCURATE")
            frame = frame[:, before : before + width]
        return frame if finish is None else finish(frame)

    return _map_frames(decode, jpegs)


def memory_reader(frames: tf.Tensor) -> Reader:
    """Returns a reader of frames in memory, uint8 [T, H, W, 3], of one video; it ignores the video's number."""

    def read(_, numbers, window=None, finish=None):
        return cut(tf.gather(frames, numbers), window, finish)

    return read


def cut(images: tf.Tensor, window: tf.Tensor | None, finish: Finish | None = None) -> tf.Tensor:
    """Cuts the window (top, left, height, width) out of images [K, H, W, C], and finishes each if asked."""
    if window is not None:
        images = images[:, window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
    return images if finish is None else _map_frames(finish, images)


def _map_frames(function: Callable[[tf.Tensor], tf.Tensor], items: tf.Tensor) -> tf.Tensor:
    # One after the other: the cores have other clips to work on.
    signature = tf.TensorSpec([None, None, 3], tf.uint8)
    return tf.map_fn(function, items, parallel_iterations=1, fn_output_signature=signature)


class DataError(OSError):
    """Clips cannot be read: the storage fails, or too many records are broken; the message names files and way out."""


def read_again(read: Callable[[], _T], shard: str) -> _T | str:
    """Returns `read()` of a record in a shard, or the reason why the record is broken.

    While the storage fails, the shard's absence included, it waits; DataError if it still does after `PAUSES`.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
            return plain_message(error)
        except tf.errors.OpError as error:
            problem = f"{shard} cannot be read ({plain_message(error).removeprefix(f'{shard}; ')})"
        if pause is None:
            how = f"tried {len(PAUSES) + 1} times in {sum(PAUSES):g} s"
            raise DataError(f"{problem}, {how}. No clip was skipped: start the same command when it can be read again")
        logging.warning("%s; it is read again in %g s.", problem, pause)
        time.sleep(pause)


class Limit:
    """Reports broken videos, and ends the stream where more than `share` (data.max_unreadable) of `num_videos` are.

    One video is always allowed, except by a share of 0. A video counts once, in whatever epoch or clip it is met.
    """

    def __init__(self, share: float, num_videos: int):
        self._share, self._num_videos = share, num_videos
        self._reasons: dict[int, str] = {}

    def check(self, step: int, reasons: Mapping[int, str], all_lost: bool) -> None:
        """Counts the broken videos of a batch, {video: reason}, which names it; DataError if they are too many."""
        self._reasons |= reasons
        count, allowed = len(self._reasons), max(1, self._share * self._num_videos) if self._share else 0
        for reason in reasons.values():
            logging.log_every_n_seconds(logging.ERROR, "Masked a clip (%d videos are broken): %s", 10, count, reason)
        problem = f"no clip of batch {step} can be read" if all_lost else None
        if count > allowed:
            limit = f"data.max_unreadable={self._share:g} allows {int(allowed)}"
            problem = f"{count} of {self._num_videos} videos are broken, as far as they were read; {limit}"
        if problem:
            way_out = "`python -m vivit_jax.data.verify DIR` lists them; put sound copies there, or raise that limit"
            raise DataError("\n".join([f"{problem}. {way_out}. The last ones:", *list(self._reasons.values())[-5:]]))


def plain_message(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message without the names of its nodes and the traceback of its graph."""
    lines = [line.split("}} ", 1)[-1].split(" [Op:", 1)[0].strip() for line in error.message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("[[", "Graph execution", "Detected at", 'File "'))]
    return " ".join(dict.fromkeys(kept))[:300] or type(error).__name__
