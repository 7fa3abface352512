"""Making an index: from what a build has just written, or from the records alone."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.data.records.split import CHUNK_FRAMES, RecordSplit, list_shards
from vivit_jax.utils import storage


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """What the index says of one video; `labels`: head -> class id, or the ids of a head with several at once."""

    video_id: str
    num_frames: int
    fps: float
    height: int
    width: int
    labels: Mapping[str, int | Sequence[int]]


def record_positions(path: storage.PathLike) -> np.ndarray:
    """Offset, length and checksum of every record of a TFRecord file: int64 [records, 3]; the data is skipped.

    Raises:
      ValueError: the file ends inside a record.
    """
    positions = []
    # Of a bucket all of it is fetched: to skip the data of each record would be a request each.
    with storage.local(path) as here, open(here, "rb") as file:
        size = storage.size(here)
        offset = 0
        while offset < size:
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if offset + 16 + length > size:
                raise ValueError(f"{path}: cut short: record {len(positions)} at byte {offset} is not whole")
            file.seek(offset + 12 + length)
            positions.append((offset, length, struct.unpack("<I", file.read(4))[0]))
            offset += 16 + length
    return np.array(positions, np.int64).reshape(-1, 3)


def assemble(
    folder: storage.PathLike,
    split: str,
    videos: Sequence[Sequence[VideoEntry]],
    class_names: Mapping[str, Sequence[str]],
    shards: Sequence[str] | None = None,
    positions: Sequence[np.ndarray] | None = None,
) -> RecordSplit:
    """The index of a split from what was written.

    Args:
      folder: of the records.
      split: its name.
      videos: those of each shard, in order.
      class_names: head -> name of each class id.
      shards: file names; None for those in `folder`.
      positions: of each shard, as of `record_positions`; None to read them.

    Raises:
      ValueError: the shards do not hold as many records as the videos need, or a head has one label in some videos and
        several in others.
    """
    folder = storage.path(folder)
    shards = list_shards(folder)[split] if shards is None else shards
    chunks, chunk_shard, flat = [], [], [video for shard in videos for video in shard]
    for number, (shard, entries) in enumerate(zip(shards, videos, strict=True)):
        places = record_positions(folder / shard) if positions is None else positions[number]
        expected = sum(-(-entry.num_frames // CHUNK_FRAMES) for entry in entries)
        if len(places) != expected:
            raise ValueError(f"{folder / shard}: {len(places)} records, {expected} expected")
        chunks.append(places)
        chunk_shard.append(np.full(len(places), number, np.int64))
    every = np.concatenate(chunks) if chunks else np.zeros((0, 3), np.int64)
    num_frames = np.array([video.num_frames for video in flat], np.int32)
    num_chunks = -(-num_frames.astype(np.int64) // CHUNK_FRAMES)
    return RecordSplit(
        folder=folder,
        name=split,
        shards=list(shards),
        video_id=np.array([video.video_id for video in flat], dtype=str),
        num_frames=num_frames,
        fps=np.array([video.fps for video in flat], np.float32),
        height=np.array([video.height for video in flat], np.int32),
        width=np.array([video.width for video in flat], np.int32),
        labels={head: _label_array(head, [video.labels[head] for video in flat]) for head in class_names},
        first_chunk=np.concatenate([[0], np.cumsum(num_chunks)[:-1]]).astype(np.int64)[: len(flat)],
        num_chunks=num_chunks,
        chunk_shard=np.concatenate(chunk_shard) if chunk_shard else np.zeros(0, np.int64),
        chunk_offset=every[:, 0],
        chunk_length=every[:, 1],
        chunk_checksum=every[:, 2].astype(np.uint32),
        class_names=class_names,
    )


def _label_array(head: str, labels: Sequence[int | Sequence[int]]) -> np.ndarray:
    """The labels of a head as `RecordSplit.labels` has them."""
    several = [not isinstance(of_video, int) for of_video in labels]
    if not any(several):
        return np.array(labels, np.int32)
    if not all(several):
        raise ValueError(f"head {head!r} has one label in some videos and several in others: build the records again")
    result = np.full((len(labels), max(1, max(map(len, labels)))), -1, np.int32)
    for row, of_video in zip(result, labels, strict=True):
        row[: len(of_video)] = sorted(of_video)
    return result
