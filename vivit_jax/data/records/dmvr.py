"""Records prepared for Scenic or DMVR, indexed and read in place.

A record is a `tf.train.SequenceExample` that holds a whole video: the feature list `image/encoded` with a JPEG per
frame, and the context features `clip/label/index` and `clip/label/text` (names of MediaSequence, as written by DMVR's
examples/generate_from_file.py and read by Scenic's video_tfrecord_dataset).
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.annotations import parsing
from vivit_jax.data.host_tf import tf
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE
from vivit_jax.data.records import dmvr_labels, reader
from vivit_jax.data.records import split as split_index
from vivit_jax.data.records.scan import read_all
from vivit_jax.data.records.split import RecordSplit, VideoEntry
from vivit_jax.utils import storage, tables, terminal

# `train-00000-of-00032`, `k400-train.tfrecord-00000-of-00100`, `val-00000-of-00010.tfrecord`; or one file per split.
_SHARD = re.compile(r"(?P<base>.+?)(?:-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?:\.\w+)?|\.(?:tfrecords?|tfrec))")
# A split whose first records, so many, all lack a label is an error at once.
CHECKED = 1000
# Context features that may hold the video's name, and features that may hold its frame rate.
_IDS = ("clip/media_id", "video/filename", "clip/data_path")
_RATE, _START, _END, _TIMES = "image/frame_rate", "clip/start/timestamp", "clip/end/timestamp", "image/timestamp"


def index_folder(
    folder: storage.PathLike,
    out: storage.PathLike | None = None,
    splits: Mapping[str, str] | None = None,
    heads: Sequence[dmvr_labels.Head] = (dmvr_labels.DEFAULT,),
    class_names: Mapping[str, Sequence[str]] | None = None,
    labels: str = "auto",
) -> Iterator[str]:
    """Writes index, class names, rejects and summary of a folder of sequences; yields the lines of a report.

    Args:
      folder, out: folders of the shards and of the index; None for the same.
      splits: name -> glob pattern of its shards; None: split by the shards' names.
      heads: heads, and where their labels are in the records.
      class_names: head -> names, where the records do not hold them.
      labels: what decides the class: "index", "text", or "auto" (the number where there is one).
    """
    out = storage.path(folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    if not storage.is_remote(out) and not os.access(out, os.W_OK):
        raise ValueError(f"{out} cannot be written to: put the index elsewhere with --out=DIR")
    folder, out = (path if storage.is_remote(path) else path.resolve() for path in (storage.path(folder), out))
    indexed, rejects = _scan(folder, out, splits, heads, class_names or {}, labels)
    names = indexed[0].class_names
    others = {path.stem.removeprefix("index_") for path in out.glob("index_*.npz")} - {split.name for split in indexed}
    if others and split_index.load_class_names(out) != names:
        advice = "index all splits in one run (several --split), or give --class_names"
        raise ValueError(f"{out} has an index of split {', '.join(sorted(others))} with other classes: {advice}")
    split_index.save_class_names(out, names)
    storage.write(out / REJECTS_FILE, tables.to_csv(("split", "shard", "record", "byte", "reason"), rejects))
    for split in indexed:
        yield f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records"
    summary = {
        "dataset": folder.name,
        "form": split_index.SEQUENCE,
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


def find_shards(folder: storage.PathLike, patterns: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Finds the shards of each split: {split: names in order, relative to `folder`}.

    `patterns` gives the glob pattern of each split. Without it, a split is named after the word for one in the shards'
    names ("val" is "validation"), or has their whole name if there is no such word, or if two sets of shards have it.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        raise split_index.NoRecordsError(f"no folder {folder}")
    if patterns:
        splits = {}
        for split, pattern in patterns.items():
            splits[split] = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file())
            if not splits[split]:
                raise split_index.NoRecordsError(f"{folder}: no file fits the pattern {pattern!r} of split {split!r}")
            split_index.group_shards(folder, splits[split], _SHARD)
        return splits
    sets = split_index.group_shards(folder, storage.names(folder), _SHARD)
    if not sets:
        none = f"no records in {folder} (no files named *-00000-of-00001 or *.tfrecord)"
        raise split_index.NoRecordsError(f"{none}; name them with --split=NAME=GLOB")
    named = {base: next(filter(None, map(parsing.SPLITS.get, re.split(r"[-_.]", base.lower()))), None) for base in sets}
    counts = Counter(named.values())
    return {
        named[base] if named[base] and counts[named[base]] == 1 else re.sub(r"\W", "_", base): names
        for base, names in sets.items()
    }


def _summary(split: RecordSplit) -> dict[str, Any]:
    sizes = Counter(zip(split.height.tolist(), split.width.tolist(), strict=True)).most_common(20)
    shown = {f"{height} x {width}": count for (height, width), count in sizes}
    return {"rejects": len(split.chunk_offset) - split.num_videos, "sizes": shown, **split.counts()}


def _scan(
    folder: storage.AnyPath,
    out: storage.AnyPath,
    patterns: Mapping[str, str] | None,
    heads: Sequence[dmvr_labels.Head],
    given_names: Mapping[str, Sequence[str]],
    label_source: str,
) -> tuple[list[RecordSplit], list[tuple]]:
    """Reads all records, and the header of each JPEG; returns the splits, and the rows of `rejects.csv`."""
    shards = find_shards(folder, patterns)
    paths = {split: [str(folder / name) for name in names] for split, names in shards.items()}
    positions = {split: list(map(split_index.record_positions, of_split)) for split, of_split in paths.items()}
    chunks = {split: split_index.chunk_arrays(of_split) for split, of_split in positions.items()}

    def locate(split, number):
        shard = chunks[split]["chunk_shard"]
        first = np.searchsorted(shard, shard[number])
        return shards[split][shard[number]], int(number - first), int(chunks[split]["chunk_offset"][number])

    # Read every record once: its video, or the reason why it cannot be used.
    videos: dict[tuple[str, int], VideoEntry] = {}
    reasons: dict[tuple[str, int], str] = {}
    total = sum(len(of_split["chunk_shard"]) for of_split in chunks.values())
    with terminal.progress_bar(title=f"{folder.name}: index", total=total) as bar:
        for split, of_split in chunks.items():
            usable = False
            where = paths[split], of_split["chunk_shard"], of_split["chunk_offset"]
            for number, record in read_all(*where, split_index.SEQUENCE, decode=False):
                shard, in_shard, _ = locate(split, number)
                video = record if isinstance(record, str) else _video(*record, heads, f"{shard}#{in_shard}")
                (reasons if isinstance(video, str) else videos)[split, number] = video
                found = [video] if isinstance(video, str) else video.labels.values()
                problem = next((reason for reason in found if isinstance(reason, str)), None)
                usable = usable or problem is None
                if not usable and number >= CHECKED:
                    raise ValueError(f"{folder}: the first {number} records of {split!r} cannot be used: {problem}")
                bar.update()

    # Class ids: a record needs one for each head.
    ids: dict[str, dict[tuple[str, int], int]] = {}
    names: dict[str, list[str]] = {}
    for head in heads:
        labels = {key: video.labels[head.name] for key, video in videos.items()}
        found = dmvr_labels.class_ids(head, labels, given_names.get(head.name), label_source)
        ids[head.name], names[head.name], unlabelled = found
        reasons = unlabelled | reasons  # keeps the first reason
    rejects, indexed = [], []
    for split, of_split in chunks.items():
        all_numbers = range(len(of_split["chunk_shard"]))
        numbers = [number for number in all_numbers if (split, number) not in reasons]
        of_rejected = [(split, *locate(split, n), reasons[split, n]) for n in all_numbers if (split, n) in reasons]
        if not numbers:
            reason = of_rejected[0][-1] if of_rejected else "there is none"
            raise ValueError(f"{folder}: split {split!r} has no record that can be used; the first: {reason}")
        rejects += of_rejected
        arrays = split_index.video_arrays([videos[split, number] for number in numbers])
        labels = {head: np.array([of_head[split, n] for n in numbers], np.int32) for head, of_head in ids.items()}
        indexed.append(
            RecordSplit(
                folder=out,
                name=split,
                shards=shards[split] if out == folder else paths[split],
                labels=labels,
                first_chunk=np.array(numbers, np.int64),
                num_chunks=np.ones(len(numbers), np.int64),
                class_names=names,
                chunk_frames=int(arrays["num_frames"].max()),
                form=split_index.SEQUENCE,
                **arrays,
                **of_split,
            )
        )
    return indexed, rejects


def _video(record: bytes, sizes: np.ndarray, heads: Sequence[dmvr_labels.Head], default: str) -> VideoEntry | str:
    """Returns the video of a record, with labels as of `read_label`; or the reason why it cannot be used.

    `sizes` int [frames, 2] are (height, width) of its frames.
    """
    count, example = len(sizes), _parse(record)
    if count == 0:
        return f"no frames: the feature list {reader.SEQUENCE_FRAMES!r} is empty"
    low, high = sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()
    if low != high:
        return f"frames of several sizes, {low[0]} x {low[1]} to {high[0]} x {high[1]} (height x width)"
    context = {
        name: list(getattr(feature, kind).value)
        for name, feature in example.context.feature.items()
        if (kind := feature.WhichOneof("kind"))
    }
    names = [name for feature in _IDS for name in context.get(feature, ())[:1] if isinstance(name, bytes)]
    name = names[0].decode(errors="replace") if names else default
    labels = {head.name: dmvr_labels.read_label(head, context) for head in heads}
    # MediaSequence's times are integers, in microseconds; others are ignored.
    stamps = [feature.int64_list.value for feature in example.feature_lists.feature_list[_TIMES].feature]
    fps = _frame_rate(context, [stamp[0] for stamp in stamps if stamp], count)
    return VideoEntry(name, count, fps, *low, labels)


def _frame_rate(context: Mapping[str, Sequence], times: Sequence[int], count: int) -> float:
    """Frames per second: as stated, or from the times of the frames or the clip (microseconds); NaN if unknown."""
    rate, start, end = (next(iter(context.get(name, ())), None) for name in (_RATE, _START, _END))
    if isinstance(rate, float) and rate > 0:
        return rate
    if len(times) > 1 and times[-1] > times[0]:
        return 1e6 * (len(times) - 1) / (times[-1] - times[0])
    if isinstance(start, int) and isinstance(end, int) and end > start:
        return 1e6 * count / (end - start)
    return float("nan")


def first_record(folder: storage.PathLike, patterns: Mapping[str, str] | None = None) -> Any | None:
    """Returns the first record of the first shard in which it can be parsed; None if there is none."""
    for path in (storage.path(folder) / name for names in find_shards(folder, patterns).values() for name in names):
        with path.open("rb") as file:
            head = file.read(12)
            if head[:3] == b"\x1f\x8b\x08":
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
