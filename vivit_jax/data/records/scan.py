"""Every record of a split, one after another: for making an index, and for verifying it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivit_jax.data import workers
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records.indexing import VideoEntry, assemble, record_positions
from vivit_jax.data.records.split import CHUNK_FRAMES, NoRecordsError, RecordSplit, list_shards, load_class_names
from vivit_jax.utils import storage

# What a record says, as `function` of `mapped` made it; or, as text, why it could not be read.
Result = dict[str, Any] | str


def mapped(
    shards: Sequence[str],
    shard: np.ndarray,
    offset: np.ndarray,
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    form: str,
    threads: int | None = None,
) -> Iterator[tuple[int, Result]]:
    """What `function` makes of each record, in order: (number, dict of NumPy values) or (number, why there is none).

    Each thread reads one record at a time; what `function` makes of it is held until its turn comes.

    Args:
      shards: paths.
      shard, offset: int64 [records], number of the shard of each record and first byte in it.
      function: of the serialised record, in the graph.
      form: of the records, "chunks" or "sequence".
      threads: None for one a core.

    Raises:
      ValueError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    paths, shard, offset = tf.constant(list(shards), tf.string), tf.constant(shard), tf.constant(offset)

    @tf.autograph.experimental.do_not_convert
    def read(number):
        return reader.records_from(paths[shard[number]], offset[number]).take(1).get_single_element()

    @tf.autograph.experimental.do_not_convert
    def load(number):
        return number, function(read(number))

    threads = threads or workers.default_workers()
    total = len(offset)
    dataset = tf.data.Dataset.range(total).map(load, threads, deterministic=True).ignore_errors()
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    due = 0
    for number, found in dataset.with_options(options).as_numpy_iterator():
        for broken in range(due, number):
            yield broken, _reason(read, function, form, broken)
        yield int(number), found
        due = int(number) + 1
    for broken in range(due, total):
        yield broken, _reason(read, function, form, broken)


def _reason(read: Callable, function: Callable, form: str, number: int) -> str:
    """Why a record cannot be read: once more, where an error can be caught, and frame by frame."""
    try:
        record = read(tf.constant(number, tf.int64))
        reason = _broken_frame(record, form)
        if reason is None:
            tf.function(function, autograph=False)(record)
    except tf.errors.DataLossError:
        return "corrupted: its checksum does not fit"
    except tf.errors.OpError as error:
        return _text(error)
    return reason or "could not be read at first, but could the second time: is the disk failing?"


def _broken_frame(record: tf.Tensor, form: str) -> str | None:
    try:
        jpegs = reader.jpegs_of(form, record[None])
    except tf.errors.OpError:
        return None
    for number, jpeg in enumerate(jpegs):
        try:
            tf.io.decode_jpeg(jpeg, channels=3)
        except tf.errors.OpError as error:
            return f"frame {number} is no readable JPEG: {_text(error)}"
    return None


def _text(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the names of its nodes."""
    lines = [line.split("}} ", 1)[-1].split(" [Op:", 1)[0].strip() for line in error.message.splitlines()]
    kept = [line for line in lines if line and not line.startswith("[[")]
    return " ".join(dict.fromkeys(kept))[:300] or type(error).__name__


def _labels(features: Mapping[str, Any], head: str) -> int | tuple[int, ...]:
    """Of a head with one label its id; of one with several at once, which the records call otherwise, all."""
    if f"labels/{head}" in features:
        return tuple(features[f"labels/{head}"].int64_list.value)
    return features[f"label/{head}"].int64_list.value[0]


def videos(path: Path, heads: Iterable[str]) -> Iterator[VideoEntry]:
    """The videos of a shard of chunk records.

    Args:
      path: of the shard.
      heads: of the labels.

    Raises:
      ValueError: records that are not chunks of videos in order, or broken ones.
    """
    seen = expected = 0
    entry, number = None, -1
    try:
        for number, data in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
            features = tf.train.Example.FromString(data).features.feature
            chunk = features["chunk"].int64_list.value[0]
            if chunk == 0:
                if seen != expected:
                    raise ValueError(f"{path}: record {number} begins a video before the one before it is complete")
                entry = VideoEntry(
                    video_id=features["video_id"].bytes_list.value[0].decode(),
                    num_frames=features["num_frames"].int64_list.value[0],
                    fps=features["fps"].float_list.value[0],
                    height=features["height"].int64_list.value[0],
                    width=features["width"].int64_list.value[0],
                    labels={head: _labels(features, head) for head in heads},
                )
                seen, expected = 0, -(-entry.num_frames // CHUNK_FRAMES)
                yield entry
            if chunk != seen or entry is None:
                raise ValueError(f"{path}: record {number} is chunk {chunk} of its video, {seen} was expected")
            seen += 1
    except tf.errors.DataLossError:
        raise ValueError(f"{path}: record {number + 1} is corrupted: its checksum does not fit") from None
    except IndexError:
        raise ValueError(f"{path}: record {number} is no chunk of a video: a feature is missing or empty") from None
    if seen != expected:
        raise ValueError(f"{path}: the last video has {seen} of {expected} chunks")


def scan(folder: storage.PathLike) -> list[RecordSplit]:
    """The index of every split of chunk records in `folder`, by reading all of them (all bytes are read and checked).

    Raises:
      NoRecordsError: no shards, or no class names.
      ValueError: records that are not chunks of videos in order, or broken ones.
    """
    folder = storage.path(folder)
    shards = list_shards(folder)
    if not shards:
        raise NoRecordsError(f"no records in {folder} (no files named *.tfrecord-00000-of-00001)")
    names = load_class_names(folder)
    splits = []
    for split, files in shards.items():
        entries, positions = [], []
        for shard in files:
            with storage.local(folder / shard) as local_file:
                entries.append(list(videos(local_file, names)))
                positions.append(record_positions(local_file))
        splits.append(assemble(folder, split, entries, names, files, positions))
    return splits
