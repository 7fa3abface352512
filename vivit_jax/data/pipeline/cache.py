"""A split kept in memory: decoded frames where they fit, else their JPEG bytes."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.records.unreadable import read_again


@dataclasses.dataclass(frozen=True)
class Cached:
    """A split in memory, of `size` bytes.

    `decoded`: video -> bool [], whether its frames are in memory, so that reading it cannot fail; None if it is decoded
    on each read. `start` starts the thread that fills the memory, `close` ends it.
    """

    read: reader.Reader
    decoded: Callable[[tf.Tensor], tf.Tensor] | None = None
    size: int = 0
    start: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


def cache(split: RecordSplit, read: reader.Reader, limit: int, threads: int) -> Cached:
    """Reads a split into memory: decoded frames if they have one size and fit, else the records as they are.

    Frames are decoded in the background after `start`; until then videos are read from their records, the same pixels.
    At most `limit` bytes are held. While it loads, videos in flight come on top: as many as fit into the rest of
    `limit`, but at least one being decoded and one waiting.
    """
    decoded = int((split.num_frames.astype(np.int64) * split.height * split.width * 3).sum())
    one_size = len(np.unique(split.height)) == len(np.unique(split.width)) == 1
    if one_size and decoded <= limit:
        return _cache_frames(split, read, limit, threads)
    if split.record_bytes <= limit:
        return _cache_records(split, threads)
    raise ValueError(
        f"{split.folder}: split {split.name!r} takes {split.record_bytes / 1e9:.1f} GB as JPEG and {decoded / 1e9:.1f} "
        f"GB decoded, more than the {limit / 1e9:.1f} GB that the cache may take: raise data.cache_gb or set "
        "data.cache=False"
    )


def _cache_frames(split: RecordSplit, read: reader.Reader, limit: int, threads: int) -> Cached:
    first = np.concatenate([[0], np.cumsum(split.num_frames.astype(np.int64))])
    # A video in flight is held as records, as frames, and once more in what waits to be stored.
    frame_bytes = int(split.height[0]) * int(split.width[0]) * 3
    remaining = limit - int(first[-1]) * frame_bytes
    threads = max(1, min(threads, remaining // (3 * int(split.num_frames.max()) * frame_bytes)))
    store = _aligned_zeros((int(first[-1]), int(split.height[0]), int(split.width[0]), 3))
    counts = tf.constant(split.num_frames.astype(np.int64))
    # 1 where a video is in memory. Not smaller, since TensorFlow copies small tensors into its graphs as constants.
    filled = _aligned_zeros((max(1024, split.num_videos),))
    stop = threading.Event()

    @tf.autograph.experimental.do_not_convert
    def load(video):
        return video, read(video, tf.range(counts[video]), None)

    videos = tf.data.Dataset.range(split.num_videos).map(load, threads).ignore_errors()

    def fill() -> None:
        for video, images in videos.as_numpy_iterator():
            if stop.is_set():
                return
            if images.shape[1:] == store.shape[1:]:  # otherwise the index does not match the records
                store[first[video] : first[video + 1]] = images
                filled[video] = 1  # last: it may be read from now on

    # Share the memory, and see what is written to it; `tf.constant` would copy it.
    frames, is_filled = (tf.experimental.dlpack.from_dlpack(array.__dlpack__()) for array in (store, filled))
    start = tf.constant(first[:-1])
    thread = threading.Thread(target=fill, name="fill-cache")

    def decoded(video):
        return tf.gather(is_filled, tf.maximum(video, 0)) > 0

    def read_cached(video, numbers, window=None, finish=None):
        return tf.cond(
            decoded(video),
            lambda: reader.cut(tf.gather(frames, start[video] + numbers), window, finish),
            lambda: read(video, numbers, window, finish),
        )

    def close() -> None:
        stop.set()
        if thread.ident is not None:
            thread.join()

    return Cached(read_cached, decoded, store.nbytes, thread.start, close)


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of uint8, aligned to 64 bytes, as TensorFlow requires of memory that it shares."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def _cache_records(split: RecordSplit, threads: int) -> Cached:
    paths = list(map(os.fsencode, split.shard_paths))
    shards, shard, offset = (tf.constant(x) for x in (paths, split.chunk_shard, split.chunk_offset))

    def read(chunk):
        return reader.records_from(shards[shard[chunk]], offset[chunk]).take(1).get_single_element()

    @tf.autograph.experimental.do_not_convert
    def load(chunk):
        # Not of `records_from`: that would try a file which cannot be opened again, for ever.
        record = tf.data.Dataset.from_tensors(chunk).map(read).ignore_errors()
        return record.concatenate(tf.data.Dataset.from_tensors("")).take(1).get_single_element()

    def is_broken(chunk: int) -> bool:
        shard_path = os.fsdecode(paths[split.chunk_shard[chunk]])
        return isinstance(read_again(functools.partial(read, chunk), shard_path), str)

    count = len(split.chunk_offset)
    for _ in range(3):
        # Batched in TensorFlow, which hands the bytes over; as NumPy objects they would be held twice.
        records = tf.data.Dataset.range(count).map(load, threads).batch(count).get_single_element()
        # In a broken record, which stays empty, no frame is found later. Others are loaded again, after an outage.
        if all(map(is_broken, np.flatnonzero(tf.strings.length(records) == 0).tolist())):
            break
    first, size = tf.constant(split.first_chunk), split.chunk_frames

    def read_cached(video, numbers, window=None, finish=None):
        low, high = tf.reduce_min(numbers) // size, tf.reduce_max(numbers) // size
        jpegs = reader.jpegs_of(split.form, records[first[video] + low : first[video] + high + 1])
        return reader.decode_frames(tf.gather(jpegs, numbers - low * size), window, finish)

    return Cached(read_cached, size=split.record_bytes)
