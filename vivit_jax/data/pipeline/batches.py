"""Batches of NumPy arrays from records, in the order of `selection.order`.

Every random choice of the clip at position p = step * batch_size + row of the training stream comes from (seed, p), and
the video from the order. So the state of the stream is the step, and the batches are the same for any number of
processes, each of which loads its rows of every batch.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vivit_jax.data import workers
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.pipeline.cache import FrameCache, decoded_bytes
from vivit_jax.data.records.reader import Limit, read_again, record_reader
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection import mirror, sampling
from vivit_jax.data.selection.order import clip_draws
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.selection.training_set import TrainingSet

_DEFAULT_OPTIONS = PipelineOptions()


class Batches(Iterator, contextlib.AbstractContextManager):
    """Iterator over batches: dicts of NumPy arrays (read-only views of TensorFlow's memory; copy to change them).

    Raises DataError where the storage fails for longer than `reader.PAUSES`; in training also where too many videos
    (`reader.Limit`; in the rows of this process, since it started) or all of a batch of four or more are broken.

    Attributes:
      step: number of the next batch.
      num_batches: None for the endless training stream.
      description: threads, prefetching and cache, for the log.
      repeated_views: videos of an evaluation that are too short or too small for different test views.
      corrupt: clips (of an evaluation, videos) returned so far with mask 0, as a record or a JPEG in it is broken.
    """

    def __init__(
        self,
        dataset: tf.data.Dataset,
        description: str,
        read_again: Callable[[int, int, int], dict | str],
        limit: Limit,
        *,
        step: int = 0,
        num_batches: int | None = None,
        repeated_views: int = 0,
        videos: _Videos | None = None,
    ):
        self._iterator: Iterator | None = iter(dataset)
        self._read_again, self._limit, self._videos, self._begun = read_again, limit, videos, False
        self.description, self.step, self.num_batches = description, step, num_batches
        self.repeated_views, self.corrupt = repeated_views, 0

    def __next__(self) -> dict:
        if self._iterator is None:
            raise StopIteration
        batch = tf.nest.map_structure(lambda tensor: np.asarray(memoryview(tensor)), next(self._iterator))
        if self._videos is not None and not self._begun:
            self._begun = True
            self._videos.start()  # not earlier: it would delay the first batch
        unreadable = np.flatnonzero((batch["mask"] == 0) & (batch["index"] >= 0))
        if len(unreadable):
            self._mend(batch, unreadable.tolist())
        self.step += 1
        return batch

    def _mend(self, batch: dict, rows: list[int]) -> None:
        """Puts the clips into a batch that can be read after all; counts and reports the others."""
        batch |= {name: batch[name].copy() for name in ("video", "mask")}
        reasons = {}
        for row in rows:
            video = int(batch["index"][row])
            clip = self._read_again(self.step, row, video)
            if isinstance(clip, str):
                reasons[video] = clip
                self.corrupt += 1
            else:
                batch["video"][row], batch["mask"][row] = clip["video"], 1.0
        several = len(set(batch["index"].tolist())) > 3  # a few may all be broken by chance
        self._limit.check(self.step, reasons, several and self.num_batches is None and not batch["mask"].any())

    def close(self) -> None:
        """Stops the background work and frees its memory; may be called twice."""
        if self._videos is not None:
            self._videos.close()
            self._videos = None
        self._iterator = None
        gc.collect()  # the graph's functions refer to one another, and to what they hold in memory

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
    """Returns the endless training stream from batch `start_step` on.

    Args:
      batch_size: of the global batch, over all processes.
      seed: of the order and of all random choices, 0 to 2^31 - 1.
      rows: (low, high), rows of every global batch that this process loads; None for all.

    Returns:
      Batches of `video` uint8 [b, T, H, W, 3]; `label` {head: int32 [b], or float32 [b, classes] of 0 and 1 for a
      multi-label head}, of the flipped clip with `spec.flip_labels="swap"`; `mask` float32 [b], 0 for a broken record;
      `index` int64 [b] in the split, or in the concatenated splits of a mixture; b = high - low. With
      `options.resize_on_device`, `augment.resize_windows` makes clips of a larger `video` and `window` int32 [b, 5].
    """
    low, high = rows or (0, batch_size)
    if start_step < 0 or not 0 <= seed < 2**31:
        raise ValueError(f"start_step={start_step}, seed={seed}: needs a step >= 0 and a seed of 0 to 2^31 - 1")
    if batch_size % spec.clips_per_video:
        problem = f"batch_size={batch_size} is not divisible by clips_per_video={spec.clips_per_video}"
        raise ValueError(f"{problem}: all clips of a video must be in one batch")
    train_set = TrainingSet.from_split(train_set)
    threads = options.threads or workers.default_workers()
    videos = _Videos(train_set.splits, options, threads)
    count = sampling.num_draws(spec)
    region = videos.largest_window(spec) if options.resize_on_device else None
    shape = [spec.num_frames, *(region or spec.image_size), 3]

    # Flips that swap labels: videos with a class that has no mirror image are never flipped.
    swap = spec.flip_probability > 0 and spec.flip_labels == "swap" and bool(train_set.heads)
    mirrors = {head: mirror.classes(names) for head, names in train_set.class_names.items()}
    may_flip = np.concatenate([mirror.may_flip(s.labels, mirrors) for s in train_set.splits]) if swap else None
    labels = _label_reader(train_set.splits, mirrors if swap else None)

    @tf.autograph.experimental.do_not_convert
    def load(position, video, strict=False):
        read = functools.partial(videos.read, strict=strict)
        draws = clip_draws(seed, position, count)
        allowed = tf.constant(may_flip)[video] if swap else True
        if region is None:
            make = lambda *size: clips.train_clip(read, video, *size, spec, draws, allowed)  # noqa: E731
            window = {}
        else:
            make = lambda *size: clips.train_region(read, video, *size, spec, draws, region)  # noqa: E731
            window = {"window": clips.window_in_region(*videos.size(video)[1:], spec, draws, region, allowed)}
        flipped = tf.logical_and(sampling.is_flipped(spec, draws), allowed)
        return videos.example(video, shape, make, strict) | window | {"label": labels(video, flipped)}

    positions = train_set.order(seed, spec).dataset(batch_size, start_step * batch_size, (low, high))
    dataset = positions.map(load, threads)
    description = _describe(options, threads, (high - low) * int(np.prod(shape)), videos.cached_bytes)
    if spec.flip_probability > 0:
        never = int((~may_flip).sum()) if swap else None
        flips = mirror.describe(train_set.class_names, mirrors, never)
        description += f"; {flips}" if flips else ""
    dataset = _batched(dataset, high - low, options.prefetch, threads)
    again = videos.reader_again(load, batch_size, low, train_set.locate)
    limit = Limit(options.max_unreadable, train_set.num_videos)
    return Batches(dataset, description, again, limit, step=start_step, videos=videos)


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

    `temporal_views` clips are evenly spread over each video, with `spatial_views` crops along the longer side. Other
    arguments and batches as in `train_batches`, but with `video` uint8 [b, V, T, H, W, 3],
    V = temporal_views * spatial_views, temporal-major. Every process gets the same number of batches.
    """
    low, high = rows or (0, batch_size)
    threads = options.threads or workers.default_workers()
    videos = _Videos([eval_set], options, threads)
    labels = _label_reader([eval_set])
    num_videos = eval_set.num_videos
    num_batches = -(-num_videos // batch_size)
    positions = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)[:, low:high].ravel()
    shape = [temporal_views * spatial_views, spec.num_frames, *spec.image_size, 3]

    @tf.autograph.experimental.do_not_convert
    def load(position, _=None, strict=False):  # the position says which video
        read = functools.partial(videos.read, strict=strict)
        make = lambda *size: clips.views(read, position, *size, spec, temporal_views, spatial_views)  # noqa: E731
        video = tf.where(position < num_videos, position, -1)
        return videos.example(video, shape, make, strict) | {"label": labels(video)}

    dataset = tf.data.Dataset.from_tensor_slices(positions.astype(np.int64)).map(load, threads)
    sizes = eval_set.num_frames, eval_set.height, eval_set.width
    repeated = int(sampling.repeated_views(*sizes, spec, temporal_views, spatial_views).sum())
    dataset = _batched(dataset, high - low, options.prefetch, threads)
    description = _describe(options, threads, (high - low) * int(np.prod(shape)), videos.cached_bytes)
    again = videos.reader_again(load, batch_size, low, TrainingSet.from_split(eval_set).locate)
    counts = {"num_batches": num_batches, "repeated_views": repeated}
    return Batches(dataset, description, again, Limit(1.0, num_videos), **counts)


def _label_reader(splits: Sequence[RecordSplit], mirrors: Mapping[str, np.ndarray] | None = None) -> Callable:
    """Returns the function from a video of concatenated splits to {head: int32 [], or float32 [classes]}; zeros for -1.

    `mirrors`: head -> class of the mirror image of each class, for a clip that is `flipped` (bool []).
    """
    num_classes = splits[0].heads
    tables = {head: tf.constant(_concatenate([split.labels[head] for split in splits])) for head in splits[0].labels}
    # The entry after the classes is for the padding (-1) of multi-label rows.
    images = {head: tf.constant(np.append(classes, -1).astype(np.int32)) for head, classes in (mirrors or {}).items()}

    def read(video, flipped=False):
        labels = {}
        for head, table in tables.items():
            ids = table[tf.maximum(video, 0)]
            if images:
                ids = tf.where(flipped, tf.gather(images[head], tf.where(ids < 0, num_classes[head], ids)), ids)
            if table.shape.rank == 2:
                multi_hot = tf.reduce_max(tf.one_hot(ids, num_classes[head]), axis=0)  # all zeros for -1
                labels[head] = tf.where(video >= 0, multi_hot, tf.zeros_like(multi_hot))
            else:
                labels[head] = tf.where(video >= 0, ids, 0)
        return labels

    return read


def _concatenate(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates labels [N] or [N, L] of several splits: int32; rows are padded to the longest with -1."""
    if labels[0].ndim == 2:
        width = max(ids.shape[1] for ids in labels)
        labels = [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1) for ids in labels]
    return np.concatenate(labels).astype(np.int32)


class _Videos:
    """The videos of concatenated splits: their sizes as tensors, and a reader of their frames."""

    def __init__(self, splits: Sequence[RecordSplit], options: PipelineOptions, threads: int):
        fields = ("num_frames", "height", "width")
        sizes = [np.concatenate([getattr(split, field) for split in splits], dtype=np.int64) for field in fields]
        self.largest_window = functools.partial(sampling.largest_window, *sizes[1:])
        self._sizes = [tf.constant(x) for x in sizes]
        self._first = np.cumsum([0, *(split.num_videos for split in splits)])
        self._splits, self._from_disk = splits, [record_reader(split) for split in splits]
        self._caches: list[FrameCache | None] = [None] * len(splits)
        self.cached_bytes = 0
        for i, split in enumerate(splits if options.cache else ()):
            limit = int(options.cache_gb * 2**30) - self.cached_bytes
            if size := decoded_bytes(split, limit):
                self._caches[i] = FrameCache(split, self._from_disk[i], size, limit, threads)
                self.cached_bytes += size

    def start(self) -> None:
        """Starts the threads that fill the cache."""
        for cached in filter(None, self._caches):
            cached.start()

    def close(self) -> None:
        """Ends them."""
        for cached in filter(None, self._caches):
            cached.close()

    def read(self, video, numbers, window=None, finish=None, strict=False):
        """A `reader.Reader` of all videos; `strict` reads from the storage, not from the cache."""
        pairs = zip(self._from_disk, self._caches, strict=True)
        readers = [read if strict or cached is None else cached.read for read, cached in pairs]
        return self._in_split(video, [lambda v, read=read: read(v, numbers, window, finish) for read in readers])

    def reader_again(self, load: Callable, batch_size: int, low: int, locate: Callable[[int], str]) -> Callable:
        """Returns (step, row, video) -> the example by `load`, or the name of the video and why it is broken."""
        load_strictly = tf.function(functools.partial(load, strict=True), autograph=False)

        def read(step: int, row: int, video: int) -> dict | str:
            split = int(np.searchsorted(self._first[1:], video, side="right"))
            shard = self._splits[split].shard_of(video - self._first[split])
            place = tf.constant([step * batch_size + low + row, video], tf.int64)
            result = read_again(lambda: load_strictly(*tf.unstack(place)), shard)
            return f"{locate(video)} in {shard}, {result}" if isinstance(result, str) else result

        return read

    def _decoded(self, video):
        """Returns whether the frames of a video are in memory (reading it cannot fail): bool []; None: never."""
        never = lambda _: tf.constant(False)  # noqa: E731
        functions = [never if cached is None else cached.decoded for cached in self._caches]
        return self._in_split(video, functions) if any(self._caches) else None

    def _in_split(self, video, functions: Sequence[Callable]):
        """Calls the function of the split that holds a video with the number of the video in it."""
        if len(functions) == 1:
            return functions[0](video)
        split = tf.searchsorted(tf.constant(self._first[1:]), video[None], side="right")[0]
        branches = [
            lambda function=function, first=first: function(video - first)
            for function, first in zip(functions, self._first[:-1].tolist(), strict=True)
        ]
        return tf.switch_case(split, branches)

    def size(self, video) -> list[tf.Tensor]:
        """Returns [number of frames, height, width] of a video, or of the first if it is -1."""
        return [x[tf.maximum(video, 0)] for x in self._sizes]

    def example(self, video, shape: list[int], make: Callable[..., tf.Tensor], strict: bool) -> dict:
        """Returns the example of a video without labels; black, mask 0 for -1 or (`strict`: an error) a broken one."""
        size = self.size(video)

        def black():
            return tf.zeros(shape, tf.uint8), 0.0

        def make_or_black():
            # An error in the graph would end the stream. In a nested data set it can be ignored, and replaced.
            example = tf.data.Dataset.from_tensors(video).map(lambda _: (make(*size), 1.0)).ignore_errors()
            fallback = tf.data.Dataset.from_tensors(video).map(lambda _: black())
            return example.concatenate(fallback).take(1).get_single_element()

        if strict:
            frames, mask = make(*size), 1.0
        elif (decoded := self._decoded(video)) is None:
            frames, mask = tf.cond(video >= 0, make_or_black, black)
        else:
            case = tf.where(video < 0, 0, tf.where(decoded, 1, 2))
            frames, mask = tf.switch_case(case, [black, lambda: (make(*size), 1.0), make_or_black])
        return {"video": tf.ensure_shape(frames, shape), "mask": mask, "index": video}


def _batched(dataset: tf.data.Dataset, batch_size: int, prefetch: int, threads: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Fixed sizes bound the memory; private threads are shared with no other pipeline of the process.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    return dataset.batch(batch_size, drop_remainder=True).prefetch(prefetch).with_options(options)


def _describe(options: PipelineOptions, threads: int, batch_bytes: int, cached_bytes: int) -> str:
    """Describes a pipeline in the log. Two batches more than prefetched exist: in the making, and handed out."""
    memory = f"{options.prefetch} batches prefetched, {(options.prefetch + 2) * batch_bytes / 1e6:.1f} MB of batches"
    return f"{threads} threads, {memory}, {f'cache {cached_bytes / 1e6:.1f} MB' if cached_bytes else 'no cache'}"
