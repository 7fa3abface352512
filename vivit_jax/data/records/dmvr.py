"""Records prepared for Scenic or DMVR, indexed and read in place.

A record is a `tf.train.SequenceExample` that holds a whole video: the feature list `image/encoded` with a JPEG per
frame, and the context features `clip/label/index` and `clip/label/text` (names of MediaSequence, as written by DMVR's
examples/generate_from_file.py and read by Scenic's video_tfrecord_dataset). Shards are called `train-00000-of-00032`,
`kinetics400-train-00000-of-00100`, `train.tfrecord-00000-of-01024` and the like.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE
from vivit_jax.data.records import dmvr_labels, indexing, reader
from vivit_jax.data.records.dmvr_shards import find_shards
from vivit_jax.data.records.scan import mapped
from vivit_jax.data.records.split import SEQUENCE, RecordSplit, load_class_names, save_class_names
from vivit_jax.utils import progress_bar, storage, tables

# Records of each split that are sampled to learn which features exist.
SAMPLED = 8
# Context features that may hold the video's name, and features that may hold its frame rate.
_IDS = ("clip/media_id", "video/filename", "clip/data_path")
_RATE, _START, _END, _TIMES = "image/frame_rate", "clip/start/timestamp", "clip/end/timestamp", "image/timestamp"
_KINDS = {"int64_list": tf.int64, "bytes_list": tf.string, "float_list": tf.float32}

# (split, shard, record in the shard, byte in the shard, reason) of a record that cannot be used.
Reject = tuple[str, str, int, int, str]


def index_folder(
    folder: storage.PathLike,
    out: storage.PathLike | None = None,
    splits: Mapping[str, str] | None = None,
    heads: Sequence[dmvr_labels.Head] = (dmvr_labels.DEFAULT,),
    class_names: Mapping[str, Sequence[str]] | None = None,
    labels: str = "auto",
) -> Iterator[str]:
    """Writes index, class names, rejects and summary of a folder of sequences; yields the lines of a report.

    Arguments and errors as `scan`; also ValueError if `out` is not writable.
    """
    out = storage.path(folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    if not storage.is_remote(out) and not os.access(out, os.W_OK):
        raise ValueError(f"{out} cannot be written to: put the index elsewhere with --out=DIR")
    indexed, rejects = scan(folder, out, splits, heads, class_names, labels)
    names = indexed[0].class_names
    others = {path.stem.removeprefix("index_") for path in out.glob("index_*.npz")} - {split.name for split in indexed}
    if others and load_class_names(out) != names:
        raise ValueError(
            f"{out} has an index of split {', '.join(sorted(others))} with other classes: index all splits in one run "
            "(several --split), or give --class_names"
        )
    save_class_names(out, names)
    storage.write(out / REJECTS_FILE, tables.to_csv(("split", "shard", "record", "byte", "reason"), rejects))
    for split in indexed:
        yield f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records"
    summary = {
        "dataset": _resolved(folder).name,
        "form": SEQUENCE,
        "quality": None,  # unknown
        "short_side": None,
        "rejects": len(rejects),
        "reject_reasons": dict(Counter(reason for *_, reason in rejects).most_common(20)),
        "splits": {split.name: _summary(split) for split in indexed},
    }
    storage.write(out / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False))
    for head, of_head in names.items():
        yield f"{head}: {len(of_head)} classes, {', '.join(of_head[:3])}{', ...' if len(of_head) > 3 else ''}"
    if rejects:
        yield f"{len(rejects)} records cannot be used; {out / REJECTS_FILE} says why. The first: {rejects[0][-1]}"


def scan(
    folder: storage.PathLike,
    out: storage.PathLike | None = None,
    splits: Mapping[str, str] | None = None,
    heads: Sequence[dmvr_labels.Head] = (dmvr_labels.DEFAULT,),
    class_names: Mapping[str, Sequence[str]] | None = None,
    labels: str = "auto",
    progress: bool = True,
) -> tuple[list[RecordSplit], list[Reject]]:
    """Reads all records of a folder of sequences, and the header of each JPEG.

    Args:
      folder: folder of the shards.
      out: where the index will be; None for `folder`.
      splits: name -> glob pattern of its shards; None: split by the shards' names.
      heads: heads of the labels, and where each is in the records.
      class_names: head -> names, where the records do not hold them.
      labels: what decides the class: "index", "text", or "auto" (the number where there is one).
      progress: show a progress bar.

    Returns:
      The splits, and the records that cannot be used.

    Raises:
      NoRecordsError: no shards, or some of a split are missing.
      ValueError: a shard that is cut short or compressed, a split without a usable record, or labels whose numbers and
        texts do not agree.
    """
    folder, out = _resolved(folder), _resolved(folder if out is None else out)
    shards = {split: _Shards(folder, names) for split, names in find_shards(folder, splits).items()}
    samples = [example for of_split in shards.values() for example in of_split.sample()]
    describe = _describer(samples, heads)

    # Read every record once: its video, or the reason why it cannot be used.
    videos: dict[tuple[str, int], indexing.VideoEntry] = {}
    reasons: dict[tuple[str, int], str] = {}
    total = sum(len(of_split.shard) for of_split in shards.values())
    with progress_bar.bar(title=f"{folder.name}: index", total=total, show=progress) as bar:
        for split, of_split in shards.items():
            for number, record in mapped(of_split.paths, of_split.shard, of_split.offset, describe, SEQUENCE):
                name = "#".join(map(str, of_split.location(number)[:2]))
                video = record if isinstance(record, str) else _video(record, heads, name)
                (reasons if isinstance(video, str) else videos)[split, number] = video
                bar.update()

    ids, names, unlabelled = dmvr_labels.class_ids(
        {key: video.labels for key, video in videos.items()}, heads, class_names or {}, labels
    )
    reasons |= unlabelled
    order = list(shards)
    rejects = [
        (split, *shards[split].location(number), reasons[split, number])
        for split, number in sorted(reasons, key=lambda key: (order.index(key[0]), key[1]))
    ]
    indexed = []
    for split, of_split in shards.items():
        numbers = sorted(number for name, number in ids if name == split)
        if not numbers:
            reason = next((reason for name, *_, reason in rejects if name == split), "there is none")
            raise ValueError(f"{folder}: split {split!r} has no record that can be used; the first: {reason}")
        entries = [videos[split, number] for number in numbers]
        labels_of = {head: np.array([ids[split, number][head] for number in numbers], np.int32) for head in names}
        indexed.append(of_split.index(split, out, numbers, entries, labels_of, names))
    return indexed, rejects


class _Shards:
    """The shards of one split; records are numbered through all of them."""

    def __init__(self, folder: storage.AnyPath, names: Sequence[str]):
        positions = [indexing.record_positions(folder / name) for name in names]
        counts = [len(of_shard) for of_shard in positions]
        self._folder, self._names = folder, names
        self._positions = np.concatenate([np.zeros((0, 3), np.int64), *positions])
        self._first = np.cumsum([0, *counts])
        self.paths = [str(folder / name) for name in names]
        self.shard = np.repeat(np.arange(len(names)), counts)
        self.offset = self._positions[:, 0]

    def location(self, number: int) -> tuple[str, int, int]:
        """Returns (shard, record in it, byte in it)."""
        shard = self.shard[number]
        return self._names[shard], int(number - self._first[shard]), int(self.offset[number])

    def sample(self) -> list[Any]:
        """Returns some records, evenly spread: a feature may be missing from the first, or in one split."""
        examples = []
        for number in range(0, len(self.shard), max(1, len(self.shard) // SAMPLED))[:SAMPLED]:
            with (self._folder / self._names[self.shard[number]]).open("rb") as file:
                file.seek(int(self.offset[number]) + 12)
                examples.append(_parse(file.read(int(self._positions[number, 1]))))
        return [example for example in examples if example is not None]

    def index(
        self,
        split: str,
        out: storage.AnyPath,
        numbers: Sequence[int],
        videos: Sequence[indexing.VideoEntry],
        labels: Mapping[str, np.ndarray],
        class_names: Mapping[str, Sequence[str]],
    ) -> RecordSplit:
        """Returns the index of the records `numbers`."""
        return RecordSplit(
            folder=out,
            name=split,
            shards=list(self._names) if out == self._folder else self.paths,
            **indexing.video_arrays(videos),
            labels=labels,
            first_chunk=np.array(numbers, np.int64),
            num_chunks=np.ones(len(numbers), np.int64),
            chunk_shard=self.shard.astype(np.int64),
            chunk_offset=self.offset,
            chunk_length=self._positions[:, 1],
            chunk_checksum=self._positions[:, 2].astype(np.uint32),
            class_names=class_names,
            chunk_frames=max(video.num_frames for video in videos),
            form=SEQUENCE,
        )


def _describer(examples: Sequence[Any], heads: Sequence[dmvr_labels.Head]) -> Callable[[tf.Tensor], dict]:
    """Returns a graph function: serialised record -> its features, of those that some of the examples have."""
    kinds = {
        name: feature.WhichOneof("kind")
        for example in reversed(examples)
        for name, feature in example.context.feature.items()
        if feature.WhichOneof("kind")
    }
    id_feature = next((name for name in _IDS if kinds.get(name) == "bytes_list"), None)
    optional = {_START: "int64_list", _END: "int64_list", _RATE: "float_list", id_feature: "bytes_list"}
    features = dmvr_labels.label_features(heads, kinds)
    features |= {name: kind for name, kind in optional.items() if kinds.get(name) == kind}
    context = {name: tf.io.RaggedFeature(_KINDS[kind]) for name, kind in features.items()}
    # With `allow_missing`, a video without frames is reported here and not by TensorFlow.
    lists = {reader.SEQUENCE_FRAMES: tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)}
    times = [time for example in examples for time in example.feature_lists.feature_list[_TIMES].feature[:1]]
    if times and all(time.WhichOneof("kind") == "int64_list" for time in times):
        lists[_TIMES] = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)

    def describe(record):
        values, sequences = tf.io.parse_single_sequence_example(record, context, lists)
        frames = sequences.pop(reader.SEQUENCE_FRAMES)
        shapes = tf.map_fn(tf.io.extract_jpeg_shape, frames, fn_output_signature=tf.TensorSpec([3], tf.int32))[:, :2]
        return {
            **values,
            **sequences,
            "id": values[id_feature] if id_feature else tf.constant([], tf.string),
            "num_frames": tf.size(frames),
            "smallest": tf.reduce_min(shapes, 0),
            "largest": tf.reduce_max(shapes, 0),
        }

    return describe


def _video(
    record: Mapping[str, np.ndarray], heads: Sequence[dmvr_labels.Head], default_name: str
) -> indexing.VideoEntry | str:
    """Returns the video of a record, with labels as of `read_label`; or the reason why it cannot be used."""
    count = int(record["num_frames"])
    if count == 0:
        return f"no frames: the feature list {reader.SEQUENCE_FRAMES!r} is empty"
    low, high = record["smallest"].tolist(), record["largest"].tolist()
    if low != high:
        return f"frames of several sizes, {low[0]} x {low[1]} to {high[0]} x {high[1]} (height x width)"
    name = record["id"][0].decode(errors="replace") if len(record["id"]) else default_name
    labels = {head.name: dmvr_labels.read_label(head, record) for head in heads}
    return indexing.VideoEntry(name, count, _frame_rate(record, count), low[0], low[1], labels)


def _frame_rate(record: Mapping[str, np.ndarray], count: int) -> float:
    """Frames per second: as stated, or from the times of the frames or the clip (microseconds); NaN if unknown."""
    if len(record.get(_RATE, ())) and record[_RATE][0] > 0:
        return float(record[_RATE][0])
    times = record.get(_TIMES, ())
    if len(times) > 1 and times[-1] > times[0]:
        return 1e6 * (len(times) - 1) / float(times[-1] - times[0])
    start, end = record.get(_START, ()), record.get(_END, ())
    if len(start) and len(end) and end[0] > start[0]:
        return 1e6 * count / float(end[0] - start[0])
    return float("nan")


def _resolved(folder: storage.PathLike) -> storage.AnyPath:
    """The one path of a local folder, links followed; a bucket as it is."""
    path = storage.path(folder)
    return path if storage.is_remote(path) else path.resolve()


def _summary(split: RecordSplit) -> dict[str, Any]:
    sizes = Counter(zip(split.height.tolist(), split.width.tolist(), strict=True))
    return {
        "videos": split.num_videos,
        "rejects": len(split.chunk_offset) - split.num_videos,
        "frames": int(split.num_frames.sum()),
        "bytes": split.record_bytes,
        "sizes": {f"{height} x {width}": count for (height, width), count in sizes.most_common(20)},
        "classes": split.class_counts(),
    }


def first_record(folder: storage.PathLike, splits: Mapping[str, str] | None = None) -> Any | None:
    """Returns the first record of the first shard in which it can be parsed; None if there is none."""
    for path in (storage.path(folder) / name for names in find_shards(folder, splits).values() for name in names):
        with path.open("rb") as file:
            head = file.read(12)
            if head[:2] == b"\x1f\x8b":
                raise ValueError(f"{path} is compressed; a compressed shard cannot be read from its middle: unpack it")
            # A corrupted length would ask for any amount of memory.
            length = min(struct.unpack("<Q", head[:8])[0], storage.size(path)) if len(head) == 12 else 0
            example = _parse(file.read(length)) if length else None
        if example is not None:
            return example
    return None


def _parse(data: bytes) -> Any | None:
    """Parses a SequenceExample (an Example is one without feature lists); None if it is neither."""
    try:
        return tf.train.SequenceExample.FromString(data)
    except Exception:  # protobuf's DecodeError, whose module depends on its version
        return None
