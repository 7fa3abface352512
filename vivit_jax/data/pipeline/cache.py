"""The decoded frames of a split, kept in memory."""

from __future__ import annotations

import threading

import numpy as np
from absl import logging

from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records.split import RecordSplit


def decoded_bytes(split: RecordSplit, limit: int) -> int:
    """Returns the bytes of a split's frames, 0 with a warning where they have several sizes or are above `limit`."""
    size = int((split.num_frames.astype(np.int64) * split.height * split.width * 3).sum())
    one_size = len(np.unique(split.height)) == len(np.unique(split.width)) == 1
    if one_size and size <= limit:
        return size
    reason = f"more than the {limit / 1e9:.1f} GB left of data.cache_gb" if one_size else "in frames of several sizes"
    shown = f"{split.folder}, {split.name}: {size / 1e9:.1f} GB decoded, {reason}"
    logging.warning("%s: not cached; its records are read from the disk or the system's own cache", shown)
    return 0


class FrameCache:
    """The frames of a split of one size, in `size` bytes of memory.

    They are decoded in the background after `start`; until then videos are read from their records, the same pixels.
    `limit` bounds the memory while it loads: videos in flight come on top, as many as fit into the rest of `limit`, but
    at least one being decoded and one waiting.
    """

    def __init__(self, split: RecordSplit, read: reader.Reader, size: int, limit: int, threads: int):
        first = np.concatenate([[0], np.cumsum(split.num_frames.astype(np.int64))])
        # A video in flight is held as records, as frames, and once more in what waits to be stored.
        in_flight = 3 * int(split.num_frames.max()) * (size // int(first[-1]))
        threads = max(1, min(threads, (limit - size) // in_flight))
        store = _aligned_zeros((int(first[-1]), int(split.height[0]), int(split.width[0]), 3))
        counts = tf.constant(split.num_frames.astype(np.int64))
        # 1 where a video is in memory. Not smaller: TensorFlow copies small tensors into its graphs as constants.
        filled = _aligned_zeros((max(1024, split.num_videos),))
        self._stop, self._read_records = threading.Event(), read

        @tf.autograph.experimental.do_not_convert
        def load(video):
            return video, read(video, tf.range(counts[video]), None)

        videos = tf.data.Dataset.range(split.num_videos).map(load, threads).ignore_errors()

        def fill() -> None:
            for video, images in videos.as_numpy_iterator():
                if self._stop.is_set():
                    return
                if images.shape[1:] == store.shape[1:]:  # otherwise the index does not match the records
                    store[first[video] : first[video + 1]] = images
                    filled[video] = 1  # last: it may be read from now on

        # Share the memory, and see what is written to it; `tf.constant` would copy it.
        self._frames, self._filled = (tf.experimental.dlpack.from_dlpack(x.__dlpack__()) for x in (store, filled))
        self._first, self._thread = tf.constant(first[:-1]), threading.Thread(target=fill, name="fill-cache")
        self.start = self._thread.start

    def decoded(self, video):
        """Returns whether the frames of a video are in memory, so that reading it cannot fail: bool []."""
        return tf.gather(self._filled, tf.maximum(video, 0)) > 0

    def read(self, video, numbers, window=None, finish=None):
        """A `reader.Reader` of the split."""
        return tf.cond(
            self.decoded(video),
            lambda: reader.cut(tf.gather(self._frames, self._first[video] + numbers), window, finish),
            lambda: self._read_records(video, numbers, window, finish),
        )

    def close(self) -> None:
        """Ends the thread that fills the memory."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of uint8, aligned to 64 bytes, as TensorFlow requires of memory that it shares."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)
