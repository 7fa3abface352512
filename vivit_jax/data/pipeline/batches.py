"""Records -> batches of NumPy arrays, in an order that is arithmetic (module `order`).

Every random choice of the clip at position p = step * batch_size + row of the training stream comes from (seed, p),
and the video from the order. So the state of the stream is the step; starting at step N costs what starting at 0 costs;
every video comes once an epoch; and the batches are the same for any number of processes, each taking its rows of every
batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vivit_jax.data import service, workers
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import keep_freed_memory, tf
from vivit_jax.data.pipeline import cache as memory
from vivit_jax.data.pipeline import clips
from vivit_jax.data.pipeline.memory_plan import Plan, example_bytes
from vivit_jax.data.pipeline.views import views_from_file, views_from_frames
from vivit_jax.data.records.reader import record_reader
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection import mirror, sampling
from vivit_jax.data.selection.order import clip_draws
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.selection.training_set import TrainingSet

__all__ = ["Batches", "ClipSpec", "eval_batches", "train_batches", "views_from_file", "views_from_frames"]

# Where a training example stands in the stream; checked by `Batches`, and not handed on.
_POSITION = "position"
_DEFAULT_OPTIONS = PipelineOptions()


class Batches:
    """Iterator over batches, dicts of NumPy arrays (read-only views of TensorFlow's memory; copy to change them).

    Attributes:
      step: number of the batch that comes next.
      num_batches: of one pass over the split (evaluation); None for the endless training stream.
      plan: threads, batches ahead, and the memory that they take.
      repeated_views: videos of the split with two test views that are the same, as they are too short or too small for
        as many (evaluation).
      corrupt: videos handed out so far with mask 0 because their record or a JPEG in it is broken.
      last_corrupt: their places in the split.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        step: int,
        num_batches: int | None,
        plan: Plan,
        repeated_views: int = 0,
        positions: Callable[[int], np.ndarray] | None = None,
    ):
        self._iterator: Iterator | None = iter(dataset)
        self._positions = positions
        self.step = step
        self.num_batches = num_batches
        self.plan = plan
        self.repeated_views = repeated_views
        self.corrupt = 0
        self.last_corrupt: list[int] = []

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict:
        if self._iterator is None:
            raise StopIteration
        batch = tf.nest.map_structure(lambda tensor: np.asarray(memoryview(tensor)), next(self._iterator))
        if self._positions is not None:
            self._check(batch.pop(_POSITION))
        broken = batch["index"][(batch["mask"] == 0) & (batch["index"] >= 0)]
        self.corrupt += len(broken)
        self.last_corrupt = (self.last_corrupt + broken.tolist())[-100:]
        self.step += 1
        return batch

    def _check(self, found: np.ndarray) -> None:
        expected = self._positions(self.step)
        if not np.array_equal(found, expected):
            raise RuntimeError(
                f"batch {self.step} holds the positions {found.tolist()[:8]}..., not {expected.tolist()[:8]}...: with "
                "data.service_address, see that no address has more than one worker; otherwise please report this"
            )

    def close(self) -> None:
        """Stops the background work and frees its memory; may be called twice."""
        self._iterator = None
        gc.collect()  # the graph's functions refer to one another, and to what they hold in memory

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def train_batches(
    train_set: RecordSplit | TrainingSet,
    spec: ClipSpec,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: tuple[int, int] | None = None,
    options: PipelineOptions = _DEFAULT_OPTIONS,
) -> Batches:
    """Returns the endless training stream from `start_step` on.

    Args:
      train_set: one split, or several from `training_set`.
      spec: clip parameters.
      batch_size: size of the global batch, over all processes.
      seed: seed of the order and of all random choices.
      start_step: number of the first batch.
      rows: (low, high), rows of every global batch that this process loads; None for all.
      options: cache (decoded frames where they fit, else JPEG), threads, prefetch, service.

    Returns:
      Batches of `video` uint8 [b, T, H, W, 3]; `label` {head: int32 [b], or float32 [b, classes] of 0 and 1 for a
      multi-label head}; `mask` float32 [b], 0 for a broken record; `index` int64 [b] in the split, or in the
      concatenated splits of a mixture; b = high - low. With `spec.flip_labels="swap"`, the labels are those of the
      flipped clip.

    Raises:
      ValueError: batch size, rows, seed or step out of range; splits too large for the cache.
      service.ServiceError: no service at the address.
    """
    low, high = _check_rows(batch_size, rows)
    if start_step < 0 or not 0 <= seed < 2**31:
        raise ValueError(f"start_step={start_step}, seed={seed}: needs a step >= 0 and a seed of 0 to 2^31 - 1")
    if batch_size % spec.clips_per_video:
        raise ValueError(
            f"batch_size={batch_size} is not divided by clips_per_video={spec.clips_per_video}: the clips of a video "
            "lie in one batch"
        )
    addresses = service.addresses_of(options.service_address) if options.service_address is not None else []
    training = TrainingSet.of(train_set)
    threads, prefetch = options.threads or workers.default_workers(), options.prefetch
    videos = _Videos(training.splits, options, threads)
    shape = [spec.num_frames, *spec.image_size, 3]
    count = clips.num_draws(spec)
    labels = _Labels(training.splits)
    swap = spec.flip_probability > 0 and spec.flip_labels == "swap"
    mirrors = training.mirror_classes()
    may_flip = np.concatenate([mirror.may_flip(s.labels, mirrors) for s in training.splits]) if swap else None
    never = int((~may_flip).sum()) if swap else None
    flips = mirror.describe(training.class_names, mirrors, never) if spec.flip_probability > 0 else ""

    @tf.autograph.experimental.do_not_convert
    def load(position, video):
        draws = clip_draws(seed, position, count)
        allowed = tf.constant(may_flip)[video] if swap else True
        make = lambda *size: clips.train_clip(videos.read, video, *size, spec, draws, allowed)  # noqa: E731
        flipped = tf.logical_and(clips.is_flipped(spec, draws), allowed)
        label = labels.of(video, mirrors, flipped) if swap else labels.of(video)
        return videos.example(video, shape, make) | {"label": label, _POSITION: position}

    positions = training.order(seed, spec).dataset(batch_size, start_step * batch_size, (low, high))
    working = example_bytes(training.splits, spec)
    batch_bytes = (high - low) * int(np.prod(shape))
    if not addresses:
        dataset = positions.map(load, threads)
        plan = Plan(threads, prefetch, batch_bytes, working, videos.cached_bytes, flips=flips)
    else:
        # Other machines may have another number of cores than this one.
        make = lambda part: part.map(load, options.threads or tf.data.AUTOTUNE).with_options(_options(None))  # noqa: E731
        dataset = service.distribute(positions, make, addresses)
        plan = Plan(None, prefetch, batch_bytes, working, service=options.service_address, flips=flips)
    return Batches(
        _finish(dataset, high - low, plan),
        start_step,
        None,
        plan,
        positions=lambda step: step * batch_size + np.arange(low, high),
    )


def eval_batches(
    eval_set: RecordSplit,
    spec: ClipSpec,
    batch_size: int,
    temporal_views: int = 1,
    spatial_views: int = 1,
    rows: tuple[int, int] | None = None,
    options: PipelineOptions = _DEFAULT_OPTIONS,
) -> Batches:
    """Returns one pass over a split: every video once, in order; the last batch is padded with mask 0 and index -1.

    Args:
      eval_set: the split.
      spec, batch_size, rows: as in `train_batches`.
      temporal_views: clips evenly spread over each video.
      spatial_views: crops along the longer side of each clip.
      options: as in `train_batches`; the service is for training only.

    Returns:
      Batches as those of `train_batches`, with `video` uint8 [b, V, T, H, W, 3], V = temporal_views * spatial_views
      (temporal-major). Every process gets the same number of batches, `num_batches`.

    Raises:
      ValueError: as `train_batches`, and fewer than one view.
    """
    low, high = _check_rows(batch_size, rows)
    if min(temporal_views, spatial_views) < 1:
        raise ValueError(f"{temporal_views} x {spatial_views} views; each must be at least 1")
    threads, prefetch = options.threads or workers.default_workers(), options.prefetch
    videos = _Videos([eval_set], options, threads)
    n = eval_set.num_videos
    num_batches = -(-n // batch_size)
    places = np.arange(num_batches * batch_size)
    places = places[(places % batch_size >= low) & (places % batch_size < high)]
    labels = _Labels([eval_set])
    shape = [temporal_views * spatial_views, spec.num_frames, *spec.image_size, 3]

    @tf.autograph.experimental.do_not_convert
    def load(place):
        make = lambda *size: clips.views(videos.read, place, *size, spec, temporal_views, spatial_views)  # noqa: E731
        video = tf.where(place < n, place, -1)
        return videos.example(video, shape, make) | {"label": labels.of(video)}

    dataset = tf.data.Dataset.from_tensor_slices(places.astype(np.int64)).map(load, threads)
    working = example_bytes([eval_set], spec, (temporal_views, spatial_views))
    plan = Plan(threads, prefetch, (high - low) * int(np.prod(shape)), working, videos.cached_bytes)
    sizes = eval_set.num_frames, eval_set.height, eval_set.width
    repeated = sampling.repeated_views(*sizes, spec, temporal_views, spatial_views)
    return Batches(_finish(dataset, high - low, plan), 0, num_batches, plan, int(repeated.sum()))


class _Labels:
    """The labels of the videos of splits, numbered one behind the other, as tensors."""

    def __init__(self, splits: Sequence[RecordSplit]):
        self._heads = splits[0].heads
        self._ids = {h: tf.constant(_stacked([split.labels[h] for split in splits])) for h in splits[0].labels}

    def of(self, video, mirrors: Mapping[str, np.ndarray] | None = None, flipped=False) -> dict:
        """Head -> label of one video, int32 [], or float32 [classes]; where the video is -1, class 0, or none.

        Args:
          video: its number.
          mirrors: head -> class of the mirror image of each class; None where labels stay.
          flipped: bool [], whether it is the mirror image whose labels are wanted.
        """
        result = {}
        for head, table in self._ids.items():
            count = self._heads[head]
            ids = table[tf.maximum(video, 0)]
            if mirrors is not None:
                # The place behind the classes is for what fills up the rows of a head with several labels.
                other = tf.constant(np.append(mirrors[head], -1).astype(np.int32))
                ids = tf.where(flipped, tf.gather(other, tf.where(ids < 0, count, ids)), ids)
            if table.shape.rank == 2:
                several = tf.reduce_max(tf.one_hot(ids, count), axis=0)  # of -1 all zeros
                result[head] = tf.where(video >= 0, several, tf.zeros_like(several))
            else:
                result[head] = tf.where(video >= 0, ids, 0)
        return result


def _stacked(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Labels [N] or [N, L] of several splits, one behind the other: int32; rows filled up to the longest with -1."""
    if labels[0].ndim == 1:
        return np.concatenate(labels).astype(np.int32)
    width = max(ids.shape[1] for ids in labels)
    filled = [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1) for ids in labels]
    return np.concatenate(filled).astype(np.int32)


class _Videos:
    """The videos of splits, numbered one behind the other, as tensors: sizes, and a reader of their frames."""

    def __init__(self, splits: Sequence[RecordSplit], options: PipelineOptions, threads: int):
        def joined(arrays, kind):
            return tf.constant(np.concatenate([np.asarray(array, kind) for array in arrays]))

        self._sizes = [joined([getattr(s, x) for s in splits], np.int64) for x in ("num_frames", "height", "width")]
        self._first = np.cumsum([0, *(s.num_videos for s in splits)])
        self._readers, good, self.cached_bytes = [], [], 0
        for split in splits:
            reader = record_reader(split)
            if options.cache:
                kept = memory.cache(split, reader, int(options.cache_gb * 2**30) - self.cached_bytes, threads)
                reader, self.cached_bytes = kept.read, self.cached_bytes + kept.size
                good.append(kept.good)
            else:
                good.append(None)
            self._readers.append(reader)
        # Where all frames are in memory, it is known beforehand which can be used, and nothing can fail.
        self._good = tf.concat(good, 0) if all(known is not None for known in good) else None

    def read(self, video, numbers, window=None, finish=None):
        """A `clips.Reader` of all videos."""
        if len(self._readers) == 1:
            return self._readers[0](video, numbers, window, finish)
        place = tf.searchsorted(tf.constant(self._first[1:]), video[None], side="right")[0]
        branches = [
            lambda reader=reader, first=first: reader(video - first, numbers, window, finish)
            for reader, first in zip(self._readers, self._first[:-1].tolist(), strict=True)
        ]
        return tf.switch_case(place, branches)

    def example(self, video, shape: list[int], make: Callable[..., tf.Tensor]) -> dict:
        """The example of one video, without its labels; where it is -1 or cannot be read, black frames and mask 0."""
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
        return {"video": tf.ensure_shape(frames, shape), "mask": mask, "index": video}


def _check_rows(batch_size: int, rows: tuple[int, int] | None) -> tuple[int, int]:
    low, high = (0, batch_size) if rows is None else rows
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= low < high <= batch_size:
        raise ValueError(f"rows ({low}, {high}) are not rows of a batch of {batch_size}")
    return low, high


def _options(threads: int | None) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    if threads is not None:
        # Fixed sizes, so that the memory is what the plan says; threads that no other pipeline of the process shares.
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
    return options


def _finish(dataset: tf.data.Dataset, batch_size: int, plan: Plan) -> tf.data.Dataset:
    keep_freed_memory()
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(plan.prefetch)
    return dataset.with_options(_options(plan.threads))
