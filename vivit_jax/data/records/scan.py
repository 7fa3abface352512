"""Reads every record of a split, one after another: to make an index, and to verify it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from vivit_jax.data import workers
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records import split as split_index
from vivit_jax.data.records.split import RecordSplit, VideoEntry
from vivit_jax.utils import storage

# A serialised record and the (height, width) of its frames, int32 [frames, 2]; or the reason why it cannot be read.
Result = tuple[bytes, np.ndarray] | str


def read_all(
    shards: Sequence[str], shard: np.ndarray, offset: np.ndarray, form: str, decode: bool, threads: int | None = None
) -> Iterator[tuple[int, Result]]:
    """Reads each record and the header of each JPEG, with `decode` the whole JPEG; yields (number, result).

    `shard` and `offset`, int64 [records], are the index of each record in `shards` (paths) and its first byte there.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    paths, path_of, first_byte = map(tf.constant, (list(map(os.fsencode, shards)), shard, offset))

    @tf.autograph.experimental.do_not_convert
    def read(number):
        return reader.records_from(paths[path_of[number]], first_byte[number]).take(1).get_single_element()

    def shape(jpeg):
        if decode:
            return tf.shape(tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE"))
        return tf.io.extract_jpeg_shape(jpeg)

    def sizes(record):
        jpegs, signature = reader.jpegs_of(form, record[None]), tf.TensorSpec([3], tf.int32)
        # One frame at a time: a long video would not fit into memory.
        return tf.map_fn(shape, jpegs, fn_output_signature=signature, parallel_iterations=1)[:, :2]

    @tf.autograph.experimental.do_not_convert
    def load(number):
        record = read(number)
        return number, (record, sizes(record))

    threads = threads or workers.default_workers()
    dataset = tf.data.Dataset.range(len(offset)).map(load, threads, deterministic=True).ignore_errors()
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    # Numbers missing from the results are those of records that failed: broken, or during an outage of the storage.
    expected = 0
    results = itertools.chain(dataset.with_options(options).as_numpy_iterator(), [(len(offset), None)])
    for number, result in results:
        for failed in range(expected, number):
            yield failed, _reread(read, sizes, form, failed, shards[shard[failed]])
        if result is not None:
            yield int(number), result
        expected = int(number) + 1


def _reread(read: Callable, sizes: Callable, form: str, number: int, shard: str) -> Result:
    """Reads a record that failed again (`reader.read_again`), where errors can be caught, and frame by frame."""
    record = reader.read_again(lambda: read(tf.constant(number, tf.int64)), shard)
    if isinstance(record, str):
        return f"corrupted: its checksum does not fit, or it is not whole ({record})"
    try:
        for frame, jpeg in enumerate(reader.jpegs_of(form, record[None])):
            try:
                tf.io.extract_jpeg_shape(jpeg)  # which, unlike decoding, takes no other format
                tf.io.decode_jpeg(jpeg, channels=3)
            except tf.errors.OpError as error:
                return f"frame {frame} is no readable JPEG: {reader.plain_message(error)}"
        return record.numpy(), tf.function(sizes, autograph=False)(record).numpy()
    except tf.errors.OpError as error:
        return reader.plain_message(error)


def scan(folder: storage.PathLike) -> list[RecordSplit]:
    """Makes the index of every split of chunk records in `folder`, by reading and verifying all bytes."""
    folder = storage.path(folder)
    shards = split_index.list_shards(folder)
    if not shards:
        raise split_index.NoRecordsError(f"no records in {folder} (no files named *.tfrecord-00000-of-00001)")
    names = split_index.load_class_names(folder)
    splits = []
    for split, files in shards.items():
        entries, positions = [], []
        for shard in files:
            with storage.local(folder / shard) as local_file:
                entries.append(list(videos(local_file, names)))
                positions.append(split_index.record_positions(local_file))
        splits.append(split_index.assemble(folder, split, entries, names, positions))
    return splits


def videos(path: Path, heads: Iterable[str]) -> Iterator[VideoEntry]:
    """Yields the videos of a shard of chunk records, with the labels of `heads`; ValueError for a broken record."""
    chunks_read = num_chunks = 0
    entry, number = None, -1
    try:
        for number, data in enumerate(tf.compat.v1.io.tf_record_iterator(os.fsencode(path))):
            features = tf.train.Example.FromString(data).features.feature
            chunk = features["chunk"].int64_list.value[0]
            if chunk == 0:
                if chunks_read != num_chunks:
                    raise ValueError(f"{path}: record {number} begins a video before the one before it is complete")
                entry = VideoEntry(
                    features["video_id"].bytes_list.value[0].decode(),
                    features["num_frames"].int64_list.value[0],
                    features["fps"].float_list.value[0],
                    features["height"].int64_list.value[0],
                    features["width"].int64_list.value[0],
                    {
                        head: tuple(features[f"labels/{head}"].int64_list.value)  # all ids of a multi-label head
                        if f"labels/{head}" in features
                        else features[f"label/{head}"].int64_list.value[0]
                        for head in heads
                    },
                )
                chunks_read, num_chunks = 0, -(-entry.num_frames // split_index.CHUNK_FRAMES)
                yield entry
            if chunk != chunks_read or entry is None:
                raise ValueError(f"{path}: record {number} is chunk {chunk} of its video, {chunks_read} was expected")
            chunks_read += 1
    except tf.errors.DataLossError:
        raise ValueError(f"{path}: record {number + 1} is corrupted: its checksum does not fit") from None
    except (IndexError, DecodeError):
        raise ValueError(f"{path}: record {number} is no chunk of a video: a feature is missing or empty") from None
    if chunks_read != num_chunks:
        raise ValueError(f"{path}: the last video has {chunks_read} of {num_chunks} chunks")
