"""Assembles the index of a split, from what a build has just written or from the records alone."""

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.records.split import CHUNK_FRAMES, RecordSplit, list_shards
from vivit_jax.utils import storage


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """Index entry of one video; `labels`: head -> class id, or the ids of a multi-label head."""

    video_id: str
    num_frames: int
    fps: float
    height: int
    width: int
    labels: Mapping[str, Any]


def record_positions(path: storage.PathLike) -> np.ndarray:
    """Returns offset, length and checksum of every record of a TFRecord file: int64 [records, 3]. Skips the data."""
    positions = []
    # A file in a bucket is copied whole: skipping the data of each record would cost a request each.
    with storage.local(path) as local_file, open(local_file, "rb") as file:
        size, offset = storage.size(local_file), 0
        while offset < size:
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if offset + 16 + length > size:
                raise ValueError(f"{path}: cut short: record {len(positions)} at byte {offset} is not whole")
            file.seek(offset + 12 + length)
            positions.append((offset, length, struct.unpack("<I", file.read(4))[0]))
            offset += 16 + length
    return np.array(positions, np.int64).reshape(-1, 3)


def video_arrays(videos: Sequence[VideoEntry]) -> dict[str, np.ndarray]:
    """Returns the fields of `RecordSplit` that describe the videos, without labels."""
    types = {"video_id": str, "num_frames": np.int32, "fps": np.float32, "height": np.int32, "width": np.int32}
    return {name: np.array([getattr(video, name) for video in videos], dtype) for name, dtype in types.items()}


def chunk_arrays(positions: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the fields of `RecordSplit` that describe the chunks, from the `record_positions` of each shard."""
    offset, length, checksum = np.concatenate([np.zeros((0, 3), np.int64), *positions]).T
    return {
        "chunk_shard": np.repeat(np.arange(len(positions), dtype=np.int64), [len(shard) for shard in positions]),
        "chunk_offset": np.ascontiguousarray(offset),
        "chunk_length": np.ascontiguousarray(length),
        "chunk_checksum": checksum.astype(np.uint32),
    }


def assemble(
    folder: storage.PathLike,
    split: str,
    videos: Sequence[Sequence[VideoEntry]],
    class_names: Mapping[str, Sequence[str]],
    positions: Sequence[np.ndarray],
) -> RecordSplit:
    """Assembles the index of a split of chunk records, from the videos and the `record_positions` of each shard."""
    folder = storage.path(folder)
    shards = list_shards(folder)[split]
    for shard, entries, of_shard in zip(shards, videos, positions, strict=True):
        expected = sum(-(-entry.num_frames // CHUNK_FRAMES) for entry in entries)
        if len(of_shard) != expected:
            raise ValueError(f"{folder / shard}: {len(of_shard)} records, {expected} expected")
    all_videos = [video for entries in videos for video in entries]
    arrays = video_arrays(all_videos) | chunk_arrays(positions)
    num_chunks = -(-arrays["num_frames"].astype(np.int64) // CHUNK_FRAMES)
    arrays |= {"num_chunks": num_chunks, "first_chunk": np.cumsum(num_chunks) - num_chunks}
    labels = {head: _label_array(head, [video.labels[head] for video in all_videos]) for head in class_names}
    return RecordSplit(folder, split, shards, labels=labels, class_names=class_names, **arrays)


def _label_array(head: str, labels: Sequence[int | Sequence[int]]) -> np.ndarray:
    """Returns the labels of a head in the form of `RecordSplit.labels`."""
    multiple = [not isinstance(label, int) for label in labels]
    if not any(multiple):
        return np.array(labels, np.int32)
    if not all(multiple):
        raise ValueError(f"head {head!r} has one label in some videos and several in others: build the records again")
    result = np.full((len(labels), max(1, max(map(len, labels)))), -1, np.int32)
    for row, ids in zip(result, labels, strict=True):
        row[: len(ids)] = sorted(ids)
    return result
