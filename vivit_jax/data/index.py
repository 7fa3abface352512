"""Where every record lies: one small `.npz` per split, so that any clip can be read without reading what is before it.

A record is a chunk of up to 16 consecutive frames of one video, as JPEG bytes in a `tf.train.Example`, in TFRecord
shards (framing of a record: 8 bytes length, 4 bytes checksum of the length, the data, 4 bytes masked CRC-32C of the
data, all little-endian). All chunks of a video lie one behind the other in one shard.

    python -m vivit_jax.data.index DIR      makes the index of the records in DIR anew, by reading them
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_FRAMES = 16
CLASS_NAMES_FILE = "class_names.json"
_VIDEO_FIELDS = ("video_id", "num_frames", "fps", "height", "width", "first_chunk", "num_chunks")
_CHUNK_FIELDS = ("chunk_shard", "chunk_offset", "chunk_length", "chunk_checksum")
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<count>\d{5})$")


class NoRecordsError(FileNotFoundError):
    """There are no records (or no index) where they were looked for; the message names the folder and the way out."""


class EmptySplitError(ValueError):
    """A split without a single video."""


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """One split of a data set on disk: N videos in C chunks.

    Attributes:
      folder: where the shards are.
      name: of the split.
      shards: file names of the shards.
      video_id: [N] names of the videos (one name may come several times: segments of one long video).
      num_frames, height, width: int32 [N]; sizes are those of the stored frames, in pixels.
      fps: float32 [N], frames per second of the source.
      labels: head -> int32 [N], class ids.
      first_chunk, num_chunks: int64 [N], place in the chunk arrays.
      chunk_shard, chunk_offset, chunk_length: int64 [C]: number of the shard, first byte of the record in it, bytes of
        the record's data.
      chunk_checksum: uint32 [C], masked CRC-32C of the data, as in the shard.
      class_names: head -> name of each class id.
      chunk_frames: frames in each chunk but a video's last.
    """

    folder: Path
    name: str
    shards: Sequence[str]
    video_id: np.ndarray
    num_frames: np.ndarray
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray
    labels: Mapping[str, np.ndarray]
    first_chunk: np.ndarray
    num_chunks: np.ndarray
    chunk_shard: np.ndarray
    chunk_offset: np.ndarray
    chunk_length: np.ndarray
    chunk_checksum: np.ndarray
    class_names: Mapping[str, Sequence[str]]
    chunk_frames: int = CHUNK_FRAMES

    @property
    def num_videos(self) -> int:
        return len(self.video_id)

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes."""
        return {head: len(names) for head, names in self.class_names.items()}

    @property
    def shard_paths(self) -> list[str]:
        return [str(self.folder / shard) for shard in self.shards]

    @property
    def record_bytes(self) -> int:
        """Bytes of all records of the split."""
        return int(self.chunk_length.sum())

    def save(self) -> Path:
        """Writes `index_{split}.npz` beside the shards, whole or not at all; returns its path."""
        path = self.folder / f"index_{self.name}.npz"
        arrays = {field: getattr(self, field) for field in _VIDEO_FIELDS + _CHUNK_FIELDS}
        arrays |= {f"label_{head}": values for head, values in self.labels.items()}
        arrays |= {"shards": np.array(list(self.shards)), "chunk_frames": np.array(self.chunk_frames)}
        partial = path.with_suffix(".part.npz")
        np.savez(partial, **arrays)
        os.replace(partial, path)
        return path


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """What the index says of one video; `labels`: head -> class id."""

    video_id: str
    num_frames: int
    fps: float
    height: int
    width: int
    labels: Mapping[str, int]


def open_split(folder: str | Path, split: str) -> RecordSplit:
    """The index of `split` of the records in `folder`.

    Raises:
      NoRecordsError: no index there (the message says how to make the records or the index).
      EmptySplitError: the split has no videos.
    """
    folder = Path(folder)
    path = folder / f"index_{split}.npz"
    if not path.is_file():
        shards = list_shards(folder) if folder.is_dir() else {}
        if split in shards:
            raise NoRecordsError(
                f"{folder}: records of split {split!r} but no index; make it: python -m vivit_jax.data.index {folder}"
            )
        there = sorted(p.stem.removeprefix("index_") for p in folder.glob("index_*.npz")) or sorted(shards)
        if there:
            raise NoRecordsError(f"{folder}: no split {split!r}; there are {', '.join(there)}")
        raise NoRecordsError(
            f"no records in {folder}; make them: "
            "python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR"
        )
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    names = json.loads((folder / CLASS_NAMES_FILE).read_text(encoding="utf-8"))
    labels = {key.removeprefix("label_"): arrays[key] for key in arrays if key.startswith("label_")}
    result = RecordSplit(
        folder=folder,
        name=split,
        shards=[str(shard) for shard in arrays["shards"]],
        labels={head: labels[head] for head in names},
        class_names=names,
        chunk_frames=int(arrays["chunk_frames"]),
        **{field: arrays[field] for field in _VIDEO_FIELDS + _CHUNK_FIELDS},
    )
    if result.num_videos == 0:
        raise EmptySplitError(f"{folder}: split {split!r} has no videos; see rejects.csv and summary.json there")
    missing = [shard for shard in result.shard_paths if not os.path.exists(shard)]
    if missing:
        raise NoRecordsError(f"{folder}: {len(missing)} of {len(result.shards)} shards are gone, first {missing[0]}")
    return result


def list_shards(folder: str | Path) -> dict[str, list[str]]:
    """Split -> names of its shards in order.

    Raises:
      NoRecordsError: a split of which some shards are missing.
    """
    found: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name in sorted(os.listdir(folder)):
        match = _SHARD.match(name)
        if match:
            found.setdefault(match["split"], {})[int(match["shard"])] = name
            counts[match["split"]] = int(match["count"])
    for split, shards in found.items():
        if sorted(shards) != list(range(counts[split])):
            raise NoRecordsError(f"{folder}: split {split!r} has {len(shards)} of {counts[split]} shards")
    return {split: [shards[i] for i in sorted(shards)] for split, shards in found.items()}


def record_positions(path: str | Path) -> np.ndarray:
    """Offset, length and checksum of every record of a TFRecord file: int64 [records, 3]; the data is skipped.

    Raises:
      ValueError: the file ends inside a record.
    """
    positions = []
    size = os.path.getsize(path)
    with open(path, "rb") as file:
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
    folder: str | Path,
    split: str,
    videos: Sequence[Sequence[VideoEntry]],
    class_names: Mapping[str, Sequence[str]],
    shards: Sequence[str] | None = None,
) -> RecordSplit:
    """The index of a split from what was written: the videos of each shard, in order.

    Raises:
      ValueError: the shards do not hold as many records as the videos need.
    """
    folder = Path(folder)
    shards = list_shards(folder)[split] if shards is None else shards
    chunks, chunk_shard, flat = [], [], [video for shard in videos for video in shard]
    for number, (shard, entries) in enumerate(zip(shards, videos, strict=True)):
        positions = record_positions(folder / shard)
        expected = sum(-(-entry.num_frames // CHUNK_FRAMES) for entry in entries)
        if len(positions) != expected:
            raise ValueError(f"{folder / shard}: {len(positions)} records, {expected} expected")
        chunks.append(positions)
        chunk_shard.append(np.full(len(positions), number, np.int64))
    positions = np.concatenate(chunks) if chunks else np.zeros((0, 3), np.int64)
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
        labels={head: np.array([video.labels[head] for video in flat], np.int32) for head in class_names},
        first_chunk=np.concatenate([[0], np.cumsum(num_chunks)[:-1]]).astype(np.int64)[: len(flat)],
        num_chunks=num_chunks,
        chunk_shard=np.concatenate(chunk_shard) if chunk_shard else np.zeros(0, np.int64),
        chunk_offset=positions[:, 0],
        chunk_length=positions[:, 1],
        chunk_checksum=positions[:, 2].astype(np.uint32),
        class_names=class_names,
    )


def save_class_names(folder: str | Path, class_names: Mapping[str, Sequence[str]]) -> None:
    """Writes `class_names.json`: head -> list of names."""
    text = json.dumps({head: list(names) for head, names in class_names.items()}, indent=1, ensure_ascii=False)
    partial = Path(folder) / (CLASS_NAMES_FILE + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, Path(folder) / CLASS_NAMES_FILE)


def scan(folder: str | Path) -> list[RecordSplit]:
    """The index of every split in `folder`, made by reading all records (slow: all bytes are read and checked).

    Raises:
      NoRecordsError: no shards, or no class names.
      ValueError: records that are not chunks of videos in order, or broken ones.
    """
    folder = Path(folder)
    shards = list_shards(folder) if folder.is_dir() else {}
    if not shards:
        raise NoRecordsError(f"no records in {folder} (no files named *.tfrecord-00000-of-00001)")
    if not (folder / CLASS_NAMES_FILE).is_file():
        raise NoRecordsError(f"{folder}: no {CLASS_NAMES_FILE}, so the heads of the labels are unknown")
    names = json.loads((folder / CLASS_NAMES_FILE).read_text(encoding="utf-8"))
    return [
        assemble(folder, split, [list(_scan_shard(folder / shard, names)) for shard in files], names, files)
        for split, files in shards.items()
    ]


def _scan_shard(path: Path, heads: Mapping[str, Any]) -> Iterator[VideoEntry]:
    from vivit_jax.data.host_tf import tf  # only here: opening an index needs none of it

    seen = expected = 0
    entry = None
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
                labels={head: features[f"label/{head}"].int64_list.value[0] for head in heads},
            )
            seen, expected = 0, -(-entry.num_frames // CHUNK_FRAMES)
            yield entry
        if chunk != seen or entry is None:
            raise ValueError(f"{path}: record {number} is chunk {chunk} of its video, {seen} was expected")
        seen += 1
    if seen != expected:
        raise ValueError(f"{path}: the last video has {seen} of {expected} chunks")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit("usage: python -m vivit_jax.data.index DIR")
    try:
        for split in scan(arguments[0]):
            print(f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records")
    except (NoRecordsError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
