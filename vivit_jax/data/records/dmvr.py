"""Records prepared for Scenic or DMVR: indexed where they lie, trained on unchanged.

A record is a `tf.train.SequenceExample` that holds a whole video: the feature list `image/encoded` with a JPEG for each
frame, and the context features `clip/label/index` and `clip/label/text` (names of MediaSequence, as written by DMVR's
examples/generate_from_file.py and read by Scenic's video_tfrecord_dataset). Shards are called `train-00000-of-00032`,
`kinetics400-train-00000-of-00100`, `train.tfrecord-00000-of-01024` and the like.

    python -m vivit_jax.data.index DIR                                  one label, splits from the shards' names
    python -m vivit_jax.data.index DIR --out=DIR2                       DIR is not written to
    python -m vivit_jax.data.index DIR --head=noun=clip/label/index:0:300 --head=verb=clip/label/index:300:97
                                                                        EPIC-Kitchens as Scenic concatenates its labels
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE
from vivit_jax.data.records import dmvr_labels, indexing, reader
from vivit_jax.data.records import scan as every_record
from vivit_jax.data.records.dmvr_shards import find_shards
from vivit_jax.data.records.split import SEQUENCE, RecordSplit, load_class_names, save_class_names
from vivit_jax.utils import progress_bar, storage, tables

# Records of each split that are looked at to learn which features there are.
SAMPLED = 8
# Context features that may name a video, and those that may tell its frame rate.
_IDS = ("clip/media_id", "video/filename", "clip/data_path")
_RATE, _START, _END, _TIMES = "image/frame_rate", "clip/start/timestamp", "clip/end/timestamp", "image/timestamp"


def index_folder(flags: argparse.Namespace) -> Iterator[str]:
    """Indexes sequences as `flags` say and writes what it found; yields the lines of a report.

    Raises:
      NoRecordsError, ValueError: as `scan`; also a folder that cannot be written to.
    """
    out = storage.path(flags.out or flags.folder)
    out.mkdir(parents=True, exist_ok=True)
    if not storage.is_remote(out) and not os.access(out, os.W_OK):
        raise ValueError(f"{out} cannot be written to: put the index elsewhere with --out=DIR")
    heads = [dmvr_labels.parse_head(text) for text in flags.head] or [dmvr_labels.DEFAULT]
    names = dmvr_labels.read_class_names(flags.class_names, heads)
    splits, rejects = scan(flags.folder, out, parse_splits(flags), heads, names, flags.labels)
    class_names = splits[0].class_names
    others = {path.stem.removeprefix("index_") for path in out.glob("index_*.npz")} - {split.name for split in splits}
    if others and load_class_names(out) != class_names:
        raise ValueError(
            f"{out} has an index of split {', '.join(sorted(others))} with other classes: index all splits in one run "
            "(several --split), or give --class_names"
        )
    save_class_names(out, class_names)
    storage.write(out / REJECTS_FILE, tables.to_csv(("split", "shard", "record", "byte", "reason"), rejects))
    for split in splits:
        yield f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records"
    summary = {
        "dataset": _resolved(flags.folder).name,
        "form": SEQUENCE,
        "quality": None,  # not told by the records
        "short_side": None,
        "rejects": len(rejects),
        "reject_reasons": dict(Counter(reason for *_, reason in rejects).most_common(20)),
        "splits": {split.name: _summary(split) for split in splits},
    }
    storage.write(out / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False))
    for head, named in class_names.items():
        yield f"{head}: {len(named)} classes, {', '.join(named[:3])}{', ...' if len(named) > 3 else ''}"
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
) -> tuple[list[RecordSplit], list[tuple[str, str, int, int, str]]]:
    """Reads all records of a folder of sequences, and of each JPEG the header.

    Args:
      folder: of the shards.
      out: where the index will be; None for `folder`.
      splits: name -> pattern of its shards; None takes them from the shards' names.
      heads: of the labels, and where each is in the records.
      class_names: head -> names, where the records do not hold them.
      labels: "index", "text" or "auto", what decides the class.
      progress: show a progress bar.

    Returns:
      The splits, and the records that cannot be used: (split, shard, record, byte, reason).

    Raises:
      NoRecordsError: no shards, or some of a split are missing.
      ValueError: a shard that is cut short or compressed, a split without a usable record, or labels whose numbers and
        texts do not agree.
    """
    folder, out = _resolved(folder), _resolved(folder if out is None else out)
    shards = find_shards(folder, splits)
    places = {split: [indexing.record_positions(folder / name) for name in names] for split, names in shards.items()}
    total = sum(len(positions) for of_split in places.values() for positions in of_split)
    describe = _describe(_sample(folder, shards, places), heads)
    found, rejects = {}, []
    with progress_bar.bar(title=f"{folder.name}: index", total=total, show=progress) as bar:
        for split, names in shards.items():
            found[split] = _Found(folder, names, places[split], heads)
            for number, result in found[split].read(describe):
                reason = result if isinstance(result, str) else found[split].add(number, result)
                if reason:
                    rejects.append((split, *found[split].place(number), reason))
                bar.update()
    entries = {split: of_split.labels for split, of_split in found.items()}
    ids, named, unlabelled = dmvr_labels.resolve(entries, heads, class_names or {}, labels)
    for split, reasons in unlabelled.items():
        rejects += [(split, *found[split].place(number), reason) for number, reason in reasons.items()]
    result = []
    for split, of_split in found.items():
        if not ids[split]:
            why = next((reason for name, *_, reason in rejects if name == split), "there is none")
            raise ValueError(f"{folder}: split {split!r} has no record that can be used; the first: {why}")
        result.append(of_split.split(split, out, ids[split], named))
    order = {split: number for number, split in enumerate(shards)}
    return result, sorted(rejects, key=lambda reject: (order[reject[0]], reject[1], reject[2]))


class _Found:
    """What was found in the records of one split, by number of the record in it."""

    def __init__(
        self,
        folder: storage.AnyPath,
        names: Sequence[str],
        places: Sequence[np.ndarray],
        heads: Sequence[dmvr_labels.Head],
    ):
        self._folder, self._names = folder, names
        self._features = {name for head in heads for name in (head.feature, *head.texts)}
        counts = [len(positions) for positions in places]
        self._positions = np.concatenate([np.zeros((0, 3), np.int64), *places])
        self._shard = np.repeat(np.arange(len(names)), counts)
        self._before = np.cumsum([0, *counts])
        self._videos: dict[int, indexing.VideoEntry] = {}
        self.labels: dict[int, dict[str, np.ndarray]] = {}

    def read(self, describe) -> Iterator[tuple[int, every_record.Result]]:
        paths = [str(self._folder / name) for name in self._names]
        return every_record.mapped(paths, self._shard, self._positions[:, 0], describe, SEQUENCE)

    def place(self, number: int) -> tuple[str, int, int]:
        """(shard, record in it, byte in it)"""
        shard = self._shard[number]
        return self._names[shard], int(number - self._before[shard]), int(self._positions[number, 0])

    def add(self, number: int, found: dict[str, Any]) -> str | None:
        """Keeps what a record says; returns the reason where it cannot be used."""
        count = int(found["num_frames"])
        if count == 0:
            return f"no frames: the feature list {reader.SEQUENCE_FRAMES!r} is empty"
        low, high = found["smallest"].tolist(), found["largest"].tolist()
        if low != high:
            return f"frames of several sizes, {low[0]} x {low[1]} to {high[0]} x {high[1]} (height x width)"
        shard, record, _ = self.place(number)
        name = found["id"][0].decode(errors="replace") if len(found["id"]) else f"{shard}#{record}"
        self._videos[number] = indexing.VideoEntry(name, count, _rate(found, count), low[0], low[1], {})
        self.labels[number] = {name: found[name] for name in self._features if name in found}
        return None

    def split(
        self,
        name: str,
        out: storage.AnyPath,
        ids: Mapping[int, Mapping[str, int]],
        class_names: Mapping[str, Sequence[str]],
    ) -> RecordSplit:
        """The index of the records in `ids`, number -> head -> class."""
        numbers = sorted(ids)
        videos = [self._videos[number] for number in numbers]
        return RecordSplit(
            folder=out,
            name=name,
            shards=list(self._names) if out == self._folder else [str(self._folder / name) for name in self._names],
            video_id=np.array([video.video_id for video in videos], dtype=str),
            num_frames=np.array([video.num_frames for video in videos], np.int32),
            fps=np.array([video.fps for video in videos], np.float32),
            height=np.array([video.height for video in videos], np.int32),
            width=np.array([video.width for video in videos], np.int32),
            labels={head: np.array([ids[number][head] for number in numbers], np.int32) for head in class_names},
            first_chunk=np.array(numbers, np.int64),
            num_chunks=np.ones(len(numbers), np.int64),
            chunk_shard=self._shard.astype(np.int64),
            chunk_offset=self._positions[:, 0],
            chunk_length=self._positions[:, 1],
            chunk_checksum=self._positions[:, 2].astype(np.uint32),
            class_names=class_names,
            chunk_frames=max(video.num_frames for video in videos),
            form=SEQUENCE,
        )


def _describe(examples: Sequence[Any], heads: Sequence[dmvr_labels.Head]):
    """A function in the graph: serialised record -> what it says, by the features that some of the records have."""
    kinds = {
        name: feature.WhichOneof("kind")
        for example in reversed(examples)
        for name, feature in example.context.feature.items()
        if feature.WhichOneof("kind")
    }
    types = {"int64_list": tf.int64, "bytes_list": tf.string, "float_list": tf.float32}
    wanted = dmvr_labels.features(heads, kinds)
    # The others are taken where they are of the kind that they should be.
    name = next((name for name in _IDS if kinds.get(name) == "bytes_list"), None)
    wanted |= {name: "bytes_list"} if name else {}
    numbers = {_START: "int64_list", _END: "int64_list", _RATE: "float_list"}
    wanted |= {feature: kind for feature, kind in numbers.items() if kinds.get(feature) == kind}
    context = {feature: tf.io.RaggedFeature(types[kind]) for feature, kind in wanted.items()}
    # Without `allow_missing` a video without frames would be told in TensorFlow's words.
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
            "id": values[name] if name else tf.constant([], tf.string),
            "num_frames": tf.size(frames),
            "smallest": tf.reduce_min(shapes, 0),
            "largest": tf.reduce_max(shapes, 0),
        }

    return describe


def _rate(found: Mapping[str, np.ndarray], count: int) -> float:
    """Frames per second, from what the record says: the rate, or times of the frames or the clip, in microseconds."""
    if len(found.get(_RATE, ())) and found[_RATE][0] > 0:
        return float(found[_RATE][0])
    times = found.get(_TIMES, ())
    if len(times) > 1 and times[-1] > times[0]:
        return 1e6 * (len(times) - 1) / float(times[-1] - times[0])
    start, end = found.get(_START, ()), found.get(_END, ())
    if len(start) and len(end) and end[0] > start[0]:
        return 1e6 * count / float(end[0] - start[0])
    return float("nan")


def _resolved(place: storage.PathLike) -> storage.AnyPath:
    """The one path of a folder, links followed; of a bucket as it is."""
    found = storage.path(place)
    return found if storage.is_remote(found) else found.resolve()


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


def parse_splits(flags: argparse.Namespace) -> dict[str, str] | None:
    patterns = dict(text.partition("=")[::2] for text in flags.split)
    for name, pattern in patterns.items():
        if not name.replace("_", "").isalnum() or not pattern:
            raise ValueError(f"--split={name}={pattern}: it must be NAME=GLOB, as in --split=train=train-*-of-*")
    return patterns or None


def first_record(paths: Sequence[storage.AnyPath]) -> Any | None:
    """The first record of the first shard in which it can be parsed."""
    for path in paths:
        with path.open("rb") as file:
            head = file.read(12)
            if head[:2] == b"\x1f\x8b":
                raise ValueError(f"{path} is compressed; a compressed shard cannot be read from its middle: unpack it")
            # A length that is corrupted would ask for any amount of memory.
            length = min(struct.unpack("<Q", head[:8])[0], storage.size(path)) if len(head) == 12 else 0
            example = _parse(file.read(length)) if length else None
        if example is not None:
            return example
    return None


def _sample(
    folder: storage.AnyPath, shards: Mapping[str, Sequence[str]], places: Mapping[str, Sequence[np.ndarray]]
) -> list[Any]:
    """Some of the records, evenly over each split: a feature may be absent from the first, or be so in one split."""
    examples = []
    for split, names in shards.items():
        records = [(name, *place) for name, found in zip(names, places[split], strict=True) for place in found[:, :2]]
        for name, offset, length in records[:: max(1, len(records) // SAMPLED)][:SAMPLED]:
            with (folder / name).open("rb") as file:
                file.seek(int(offset) + 12)
                examples.append(_parse(file.read(int(length))))
    return [example for example in examples if example is not None]


def _parse(data: bytes) -> Any | None:
    """The record as a SequenceExample (an Example is one without feature lists); None where it is neither."""
    try:
        return tf.train.SequenceExample.FromString(data)
    except Exception:  # protobuf's DecodeError, whose place depends on its version
        return None
