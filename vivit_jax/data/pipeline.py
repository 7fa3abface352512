"""Records -> batches of NumPy arrays, in an order that is arithmetic.

Position p = step * batch_size + row of the training stream means: epoch p // n, place p % n in that epoch's
permutation, which a stateless shuffle makes from (seed, epoch); every random choice of the clip comes from (seed, p).
So the state of the stream is the step; starting at step N costs what starting at 0 costs; every video comes once an
epoch; and the batches are the same for any number of processes, each taking its rows of every batch.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vivit_jax.data import clips, decode, index, memory, sampling, workers
from vivit_jax.data.host_tf import tf
from vivit_jax.data.sampling import ClipSpec

__all__ = [
    "Batches",
    "ClipSpec",
    "eval_batches",
    "permutation_hash",
    "train_batches",
    "views_from_file",
    "views_from_frames",
]

# Streams of random numbers that must not share their seeds.
_ORDER, _CLIP = 0, 1


class Batches:
    """Iterator over batches, dicts of NumPy arrays (read-only views of TensorFlow's memory; copy to change them).

    Attributes:
      step: number of the batch that comes next.
      num_batches: of one pass over the split (evaluation); None for the endless training stream.
      corrupt: videos handed out so far with mask 0 because their record or a JPEG in it is broken.
      last_corrupt: their places in the split.
    """

    def __init__(self, dataset: tf.data.Dataset, step: int, num_batches: int | None):
        self._iterator: Iterator | None = iter(dataset)
        self.step = step
        self.num_batches = num_batches
        self.corrupt = 0
        self.last_corrupt: list[int] = []

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict:
        if self._iterator is None:
            raise StopIteration
        batch = tf.nest.map_structure(lambda tensor: np.asarray(memoryview(tensor)), next(self._iterator))
        broken = batch["index"][(batch["mask"] == 0) & (batch["index"] >= 0)]
        self.corrupt += len(broken)
        self.last_corrupt = (self.last_corrupt + broken.tolist())[-100:]
        self.step += 1
        return batch

    def close(self) -> None:
        """Stops the background work and frees its memory; may be called twice."""
        self._iterator = None
        gc.collect()  # the graph's functions refer to one another, and to what they hold in memory

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def train_batches(
    split: index.RecordSplit,
    spec: ClipSpec,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: tuple[int, int] | None = None,
    cache: bool = False,
    cache_limit: int = 2 << 30,
    threads: int | None = None,
    prefetch: int = 2,
) -> Batches:
    """The endless training stream from `start_step` on.

    Args:
      split: from `index.open_split`.
      spec: of the clips.
      batch_size: of the global batch, over all processes.
      seed: of the order and of all random choices.
      start_step: number of the first batch.
      rows: (low, high), rows of every global batch that this process takes; None for all.
      cache: keep the split in memory, decoded where that takes at most `cache_limit` bytes, else as JPEG.
      threads: clips made at the same time; None for one a core.
      prefetch: batches made ahead.

    Returns:
      Batches of `video` uint8 [b, T, H, W, 3], `label` {head: int32 [b]}, `mask` float32 [b] (0 for a broken record),
      `index` int64 [b] (place in the split), with b = high - low.

    Raises:
      ValueError: batch size, rows, seed or step out of range; a split too large to be cached.
    """
    low, high = _check(split, batch_size, rows)
    if start_step < 0 or not 0 <= seed < 2**31:
        raise ValueError(f"start_step={start_step}, seed={seed}: needs a step >= 0 and a seed of 0 to 2^31 - 1")
    threads = threads or workers.default_workers()
    source = _Source(split, cache, cache_limit, threads)
    n = split.num_videos
    first = start_step * batch_size

    @tf.autograph.experimental.do_not_convert
    def epoch(number):
        position = number * n + tf.range(n, dtype=tf.int64)
        row = position % batch_size
        mine = (position >= first) & (row >= low) & (row < high)
        order = _permutation(n, seed, number)
        return tf.data.Dataset.from_tensor_slices((tf.boolean_mask(position, mine), tf.boolean_mask(order, mine)))

    @tf.autograph.experimental.do_not_convert
    def load(position, video):
        key = tf.random.experimental.stateless_fold_in(_seed(seed, _CLIP), position)
        draws = tf.random.stateless_uniform([clips.NUM_DRAWS], key, dtype=tf.float64, alg="philox")
        return source.example(
            video,
            [spec.num_frames, *spec.image_size, 3],
            lambda *size: clips.train_clip(source.read, video, *size, spec, draws),
        )

    dataset = tf.data.Dataset.range(first // n, 2**62).flat_map(epoch)
    return Batches(_finish(dataset.map(load, threads), high - low, prefetch), start_step, None)


def eval_batches(
    split: index.RecordSplit,
    spec: ClipSpec,
    batch_size: int,
    temporal_views: int = 1,
    spatial_views: int = 1,
    rows: tuple[int, int] | None = None,
    cache: bool = False,
    cache_limit: int = 2 << 30,
    threads: int | None = None,
    prefetch: int = 2,
) -> Batches:
    """One pass over the split: every video exactly once, in order, the last batch filled up with mask 0 and index -1.

    Args:
      split, spec, batch_size, rows, cache, cache_limit, threads, prefetch: as in `train_batches`.
      temporal_views: clips evenly spread over each video.
      spatial_views: crops along the longer side of each clip.

    Returns:
      Batches as those of `train_batches`, with `video` uint8 [b, V, T, H, W, 3], V = temporal_views * spatial_views
      (temporal-major). Every process gets the same number of batches, `num_batches`.

    Raises:
      ValueError: as `train_batches`, and fewer than one view.
    """
    low, high = _check(split, batch_size, rows)
    if min(temporal_views, spatial_views) < 1:
        raise ValueError(f"{temporal_views} x {spatial_views} views; each must be at least 1")
    threads = threads or workers.default_workers()
    source = _Source(split, cache, cache_limit, threads)
    n = split.num_videos
    num_batches = -(-n // batch_size)
    places = np.arange(num_batches * batch_size)
    places = places[(places % batch_size >= low) & (places % batch_size < high)]
    shape = [temporal_views * spatial_views, spec.num_frames, *spec.image_size, 3]

    @tf.autograph.experimental.do_not_convert
    def load(place):
        return source.example(
            tf.where(place < n, place, -1),
            shape,
            lambda *size: clips.views(source.read, place, *size, spec, temporal_views, spatial_views),
        )

    dataset = tf.data.Dataset.from_tensor_slices(places.astype(np.int64)).map(load, threads)
    return Batches(_finish(dataset, high - low, prefetch), 0, num_batches)


def views_from_frames(
    frames: np.ndarray, spec: ClipSpec, temporal_views: int = 1, spatial_views: int = 1
) -> np.ndarray:
    """The test views of a video in memory, made by the same code as those of `eval_batches`.

    Args:
      frames: uint8 [T, H, W, 3], RGB, at least one.

    Returns:
      uint8 [V, spec.num_frames, h, w, 3], temporal-major.

    Raises:
      ValueError: frames of another shape or type, or none.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 [T, H, W, 3] with T >= 1")
    size = (tf.constant(x, tf.int64) for x in frames.shape[:3])
    reader = clips.memory_reader(tf.constant(frames))
    return clips.views(reader, tf.constant(0, tf.int64), *size, spec, temporal_views, spatial_views).numpy()


def views_from_file(
    path: str | Path,
    spec: ClipSpec,
    temporal_views: int = 1,
    spatial_views: int = 1,
    short_side: int | None = None,
    memory_limit: int = 1 << 30,
) -> np.ndarray:
    """The test views of a video file: decoded as the builder does it, cut as `eval_batches` does it.

    Args:
      path: of the file.
      spec, temporal_views, spatial_views: as in `views_from_frames`.
      short_side: of the data set's records; larger frames are shrunk to it.
      memory_limit: bytes of frames to hold. A video beyond it is decoded twice, and only what the views need is kept.

    Returns:
      uint8 [V, spec.num_frames, h, w, 3], temporal-major.

    Raises:
      decode.VideoError: the file is not a video, or broken.
    """
    frames, count, size = [], 0, 0
    for frame in decode.iterate_frames(path, short_side=short_side):
        count, size = count + 1, size + frame.image.nbytes
        if size <= memory_limit:
            frames.append(frame.image)
    if count == len(frames):
        return views_from_frames(np.stack(frames), spec, temporal_views, spatial_views)
    frames.clear()
    needed = [
        sampling.view_frames(count, spec.num_frames, spec.stride, temporal_views, i) for i in range(temporal_views)
    ]
    needed = np.unique(np.concatenate(needed))
    wanted = set(needed.tolist())
    again = enumerate(decode.iterate_frames(path, short_side=short_side))
    kept = np.stack([frame.image for number, frame in again if number in wanted])
    in_memory, places = clips.memory_reader(tf.constant(kept)), tf.constant(needed, tf.int64)

    def read(video, numbers, window=None):
        return in_memory(video, tf.searchsorted(places, tf.cast(numbers, tf.int64)), window)

    shape = (tf.constant(x, tf.int64) for x in (count, *kept.shape[1:3]))
    return clips.views(read, tf.constant(0, tf.int64), *shape, spec, temporal_views, spatial_views).numpy()


def permutation_hash(num_videos: int, seed: int) -> str:
    """Fingerprint of the order: 16 hex digits. TensorFlow does not promise its random numbers across versions, so a
    checkpoint holds this, and a resumed run compares it before it claims to go on where it was.
    """
    digest = hashlib.sha256()
    for epoch in (0, 1):
        digest.update(_permutation(num_videos, seed, tf.constant(epoch, tf.int64)).numpy().tobytes())
    key = tf.random.experimental.stateless_fold_in(_seed(seed, _CLIP), tf.constant(0, tf.int64))
    digest.update(tf.random.stateless_uniform([8], key, dtype=tf.float64, alg="philox").numpy().tobytes())
    return digest.hexdigest()[:16]


class _Source:
    """The videos of a split as tensors: sizes, labels, and a reader of frames from disk or memory."""

    def __init__(self, split: index.RecordSplit, cache: bool, cache_limit: int, threads: int):
        self._sizes = [tf.constant(np.asarray(x, np.int64)) for x in (split.num_frames, split.height, split.width)]
        self._labels = {head: tf.constant(ids, tf.int32) for head, ids in split.labels.items()}
        self.read, self._good = clips.record_reader(split), None
        if cache:
            cached = memory.cache(split, self.read, cache_limit, threads)
            self.read, self._good = cached.read, cached.good

    def example(self, video, shape: list[int], make: Callable[..., tf.Tensor]) -> dict:
        """The example of one video; where it is -1, or its record is broken, black frames and mask 0."""
        size = [x[tf.maximum(video, 0)] for x in self._sizes]

        def black():
            return tf.zeros(shape, tf.uint8), 0.0

        def guarded():
            # An error in the graph would end the stream. In a nested data set it can be ignored, and replaced.
            made = tf.data.Dataset.from_tensors(video).map(lambda _: (make(*size), 1.0)).ignore_errors()
            spare = tf.data.Dataset.from_tensors(video).map(lambda _: black())
            return made.concatenate(spare).take(1).get_single_element()

        if self._good is None:
            frames, mask = tf.cond(video >= 0, guarded, black)
        else:
            usable = tf.logical_and(video >= 0, self._good[tf.maximum(video, 0)])
            frames, mask = tf.cond(usable, lambda: (make(*size), 1.0), black)
        labels = {head: tf.where(video >= 0, ids[tf.maximum(video, 0)], 0) for head, ids in self._labels.items()}
        return {"video": tf.ensure_shape(frames, shape), "label": labels, "mask": mask, "index": video}


def _seed(seed: int, stream: int) -> tf.Tensor:
    return tf.constant([seed, stream], tf.int32)


def _permutation(n: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    key = tf.random.experimental.stateless_fold_in(_seed(seed, _ORDER), epoch, alg="philox")
    return tf.random.experimental.stateless_shuffle(tf.range(n, dtype=tf.int64), key, alg="philox")


def _check(split: index.RecordSplit, batch_size: int, rows: tuple[int, int] | None) -> tuple[int, int]:
    low, high = (0, batch_size) if rows is None else rows
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= low < high <= batch_size:
        raise ValueError(f"rows ({low}, {high}) are not rows of a batch of {batch_size}")
    return low, high


def _finish(dataset: tf.data.Dataset, batch_size: int, prefetch: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return dataset.batch(batch_size, drop_remainder=True).prefetch(prefetch).with_options(options)
