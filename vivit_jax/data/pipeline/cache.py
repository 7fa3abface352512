"""A split kept in memory: decoded frames where they fit, else their JPEG bytes."""

from __future__ import annotations

import dataclasses

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records.split import RecordSplit


@dataclasses.dataclass(frozen=True)
class Cached:
    """`read`: a `clips.Reader`. `good`: bool [N], videos that could be read, where that is known beforehand; a reader
    without it fails on broken records as one from disk does. `size`: bytes held.
    """

    read: reader.Reader
    good: tf.Tensor | None = None
    size: int = 0


def cache(split: RecordSplit, read: reader.Reader, limit: int, threads: int) -> Cached:
    """Reads a split into memory: decoded frames where they are of one size and fit, else the records as they are.

    What is kept takes at most `limit` bytes. While it is read, the videos in flight come on top: no more of them at the
    same time than fit into the rest of `limit`, but at least one being decoded and one waiting.

    Args:
      split: to be kept.
      read: reads its frames from disk.
      limit: bytes that may be used.
      threads: videos read at the same time.

    Raises:
      ValueError: neither the decoded frames nor the records fit into `limit`.
    """
    frames = split.num_frames.astype(np.int64)
    decoded = int((frames * split.height * split.width * 3).sum())
    same = len(np.unique(split.height)) == len(np.unique(split.width)) == 1
    if same and decoded <= limit:
        return _frames(split, read, limit, threads)
    if split.record_bytes <= limit:
        return _records(split, threads)
    raise ValueError(
        f"{split.folder}: split {split.name!r} takes {split.record_bytes / 1e9:.1f} GB as JPEG and "
        f"{decoded / 1e9:.1f} GB decoded, more than the {limit / 1e9:.1f} GB that the cache may take: "
        "raise the limit or do not cache"
    )


def _frames(split: RecordSplit, read: reader.Reader, limit: int, threads: int) -> Cached:
    first = np.concatenate([[0], np.cumsum(split.num_frames.astype(np.int64))])
    # A video in flight is there as records, as frames, and once more in what waits to be stored.
    frame = int(split.height[0]) * int(split.width[0]) * 3
    rest = limit - int(first[-1]) * frame
    threads = max(1, min(threads, rest // (3 * int(split.num_frames.max()) * frame)))
    store = _aligned_zeros((int(first[-1]), int(split.height[0]), int(split.width[0]), 3))
    counts = tf.constant(split.num_frames.astype(np.int64))
    good = np.zeros(split.num_videos, bool)

    @tf.autograph.experimental.do_not_convert
    def load(video):
        return video, read(video, tf.range(counts[video]), None)

    videos = tf.data.Dataset.range(split.num_videos).map(load, threads).ignore_errors()
    for video, images in videos.as_numpy_iterator():
        if images.shape[1:] == store.shape[1:]:  # otherwise the index is not that of these records
            store[first[video] : first[video + 1]] = images
            good[video] = True
    # Shares the memory; `tf.constant` would copy it twice.
    frames, start = tf.experimental.dlpack.from_dlpack(store.__dlpack__()), tf.constant(first[:-1])

    def cached(video, numbers, window=None, finish=None):
        return reader.cut(tf.gather(frames, start[video] + numbers), window, finish)

    return Cached(cached, tf.constant(good), store.nbytes)


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of uint8 that begin at a multiple of 64 bytes, as TensorFlow wants of memory that it shares."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def _records(split: RecordSplit, threads: int) -> Cached:
    shards, shard, offset = (tf.constant(x) for x in (split.shard_paths, split.chunk_shard, split.chunk_offset))

    @tf.autograph.experimental.do_not_convert
    def load(chunk):
        # A record whose checksum does not fit becomes an empty one, which holds none of the frames asked for.
        found = reader.records_from(shards[shard[chunk]], offset[chunk]).take(1).ignore_errors()
        return found.concatenate(tf.data.Dataset.from_tensors("")).take(1).get_single_element()

    count = len(split.chunk_offset)
    # Batched in TensorFlow, which hands the bytes over; as NumPy objects they would be there twice.
    records = tf.data.Dataset.range(count).map(load, threads).batch(count).get_single_element()
    first, size = tf.constant(split.first_chunk), split.chunk_frames

    def cached(video, numbers, window=None, finish=None):
        low, high = tf.reduce_min(numbers) // size, tf.reduce_max(numbers) // size
        chunks = records[first[video] + low : first[video] + high + 1]
        return reader.decode_frames(
            tf.gather(reader.jpegs_of(split.form, chunks), numbers - low * size), window, finish
        )

    return Cached(cached, size=split.record_bytes)
