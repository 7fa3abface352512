"""A split kept in memory: decoded frames where they fit, else their JPEG bytes."""

from __future__ import annotations

import numpy as np

from vivit_jax.data import clips, index
from vivit_jax.data.host_tf import tf


def cached_reader(split: index.RecordSplit, read: clips.Reader, limit: int, threads: int | None = None) -> clips.Reader:
    """A reader of frames from memory, filled now.

    Args:
      split: to be kept.
      read: reads its frames from disk.
      limit: bytes that may be used.
      threads: videos decoded at the same time.

    Returns:
      A reader as `clips.record_reader`; reading a video whose records are broken is an error here as it is there.

    Raises:
      ValueError: neither the decoded frames nor the records fit into `limit`.
    """
    frames = split.num_frames.astype(np.int64)
    decoded = int((frames * split.height * split.width * 3).sum())
    same = len(np.unique(split.height)) == len(np.unique(split.width)) == 1
    if same and decoded <= limit:
        return _frames(split, read, threads)
    if split.record_bytes <= limit:
        return _records(split)
    raise ValueError(
        f"{split.folder}: split {split.name!r} takes {split.record_bytes / 1e9:.1f} GB as JPEG and {decoded / 1e9:.1f} GB "
        f"decoded, more than the {limit / 1e9:.1f} GB that the cache may take: raise the limit or do not cache"
    )


def _frames(split: index.RecordSplit, read: clips.Reader, threads: int | None) -> clips.Reader:
    first = np.concatenate([[0], np.cumsum(split.num_frames.astype(np.int64))])
    store = np.zeros((first[-1], split.height[0], split.width[0], 3), np.uint8)
    counts = tf.constant(split.num_frames.astype(np.int64))
    good = np.zeros(split.num_videos, bool)

    def load(video):
        return video, read(video, tf.range(counts[video]), None)

    videos = tf.data.Dataset.range(split.num_videos).map(load, threads or tf.data.AUTOTUNE).ignore_errors()
    for video, images in videos.prefetch(8).as_numpy_iterator():
        store[first[video] : first[video + 1]] = images
        good[video] = True
    frames = tf.constant(store)
    start, good = tf.constant(first[:-1]), tf.constant(good)

    def cached(video, numbers, window=None):
        with tf.control_dependencies([tf.debugging.Assert(good[video], ["broken record of video", video])]):
            return clips.cut(tf.gather(frames, start[video] + numbers), window)

    return cached


def _records(split: index.RecordSplit) -> clips.Reader:
    shards, shard, offset = (tf.constant(x) for x in (split.shard_paths, split.chunk_shard, split.chunk_offset))

    def load(chunk):
        # A record whose checksum does not fit becomes an empty one, which holds none of the frames asked for.
        found = clips.records_from(shards[shard[chunk]], offset[chunk]).take(1).ignore_errors()
        return found.concatenate(tf.data.Dataset.from_tensors("")).take(1).get_single_element()

    dataset = tf.data.Dataset.range(len(split.chunk_offset)).map(load, tf.data.AUTOTUNE)
    records = tf.constant(np.array(list(dataset.as_numpy_iterator()), object))
    first, size = tf.constant(split.first_chunk), split.chunk_frames

    def cached(video, numbers, window=None):
        low, high = tf.reduce_min(numbers) // size, tf.reduce_max(numbers) // size
        chunks = records[first[video] + low : first[video] + high + 1]
        return clips.frames_of_chunks(chunks, numbers - low * size, window)

    return cached
