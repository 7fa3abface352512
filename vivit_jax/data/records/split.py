"""The index of a split: where each record is, so that any clip can be read without reading what precedes it.

A record is a chunk of up to 16 consecutive frames of one video, as JPEG bytes in a `tf.train.Example`, in TFRecord
shards (per record: 8 bytes length, 4 bytes checksum of the length, the data, 4 bytes masked CRC-32C of the data, all
little-endian). The chunks of a video are consecutive in one shard. Each split has an index file, `index_{split}.npz`.
Records of Scenic and DMVR are sequences: one `tf.train.SequenceExample` per video (module `dmvr`).
"""

import dataclasses
import hashlib
import io
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.paths import CLASS_NAMES_FILE, SUMMARY_FILE, read_summary
from vivit_jax.utils import storage

CHUNK_FRAMES = 16
# Forms of a record: a chunk of a video in an Example, or a whole video in a SequenceExample.
CHUNKS, SEQUENCE = "chunks", "sequence"
_VIDEO_FIELDS = ("video_id", "num_frames", "fps", "height", "width", "first_chunk", "num_chunks")
_CHUNK_FIELDS = ("chunk_shard", "chunk_offset", "chunk_length", "chunk_checksum")
_SHARD = re.compile(r".+-(?P<base>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
# Formats of the index file. 1 has no `form`: chunks. 3 allows multi-label heads; without, 2 is written (older readers).
_FORMAT, _SINGLE_LABEL_FORMAT = 3, 2
_REBUILD = "rebuild the index: python -m vivit_jax.data.index"


class NoRecordsError(FileNotFoundError):
    """Records or an index are missing; the message names the folder and the way out."""


class EmptySplitError(ValueError):
    """A split without a video."""


class BadIndexError(ValueError):
    """An index that cannot be read, or that does not match the shards; the message names the way out."""


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """One split of a data set on disk: N videos in C chunks."""

    folder: storage.AnyPath  # of the index, and of the shards unless their names are absolute
    name: str
    shards: Sequence[str]
    video_id: np.ndarray  # [N]; an id may occur several times, for segments of one long video
    num_frames: np.ndarray  # int32 [N], of the stored frames, as height and width
    fps: np.ndarray  # float32 [N], frames per second of the source; NaN where unknown
    height: np.ndarray
    width: np.ndarray
    # head -> class ids, int32 [N]; of a multi-label head int32 [N, L], those of a video in rising order, padded with -1
    labels: Mapping[str, np.ndarray]
    first_chunk: np.ndarray  # int64 [N], the first of the video's consecutive entries in the chunk arrays
    num_chunks: np.ndarray  # int64 [N], their number
    chunk_shard: np.ndarray  # int64 [C], number of the shard
    chunk_offset: np.ndarray  # int64 [C], first byte of the record
    chunk_length: np.ndarray  # int64 [C], bytes of its data
    chunk_checksum: np.ndarray  # uint32 [C], masked CRC-32C of the data, as in the shard
    class_names: Mapping[str, Sequence[str]]  # head -> name of each class id
    chunk_frames: int = CHUNK_FRAMES  # in each chunk but the last of a video; sequences: at least the longest one
    form: str = CHUNKS  # or "sequence": each record is a whole video, and unusable records belong to no video

    @property
    def num_videos(self) -> int:
        return len(self.video_id)

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes."""
        return {head: len(names) for head, names in self.class_names.items()}

    @property
    def multi_label(self) -> frozenset[str]:
        return frozenset(head for head, ids in self.labels.items() if ids.ndim == 2)

    @property
    def shard_paths(self) -> list[str]:
        return [str(storage.under(self.folder, shard)) for shard in self.shards]

    @property
    def shard_bytes(self) -> np.ndarray:
        """int64 [shards], size of each shard, which is where its last record ends."""
        sizes = np.zeros(len(self.shards), np.int64)
        np.maximum.at(sizes, self.chunk_shard, self.chunk_offset + self.chunk_length + 16)
        return sizes

    def shard_of(self, video: int) -> str:
        """Returns the path of the shard that holds a video."""
        return str(storage.under(self.folder, self.shards[self.chunk_shard[self.first_chunk[video]]]))

    def stored_frames(self) -> dict[str, Any]:
        """Returns `stored_short_side` and `stored_fps`, the maxima to which frames were stored; None for no maximum."""
        summary = read_summary(self.folder)
        # Records of other programs do not say: that of the largest video.
        short_side = summary.get("short_side") or int(np.minimum(self.height, self.width).max())
        return {"stored_short_side": short_side, "stored_fps": summary.get("fps")}

    def digests(self) -> dict[str, str]:
        """Returns 16 hex digits for each of `videos` (their names), `labels`, and `records` (the stored frames)."""
        records = ("num_frames", "height", "width", "num_chunks", "chunk_length", "chunk_checksum")
        parts = {
            "videos": ["\n".join(self.video_id.tolist())],
            "labels": [part for head in sorted(self.labels) for part in (head, self.labels[head])],
            "records": [getattr(self, field) for field in records],
        }
        digests = {name: hashlib.sha256() for name in parts}
        for name, values in parts.items():
            for value in values:
                is_text = isinstance(value, str)
                digests[name].update(value.encode() if is_text else np.ascontiguousarray(value, "<i8").tobytes())
        return {name: digest.hexdigest()[:16] for name, digest in digests.items()}

    def counts(self) -> dict[str, Any]:
        """Returns `videos`, `frames`, `bytes`, `classes`: {head: {name of each class with videos: their number}}."""
        of_heads = {head: np.unique(ids[ids >= 0], return_counts=True) for head, ids in self.labels.items()}
        classes = {
            head: {self.class_names[head][i]: int(n) for i, n in zip(*of_head, strict=True)}
            for head, of_head in of_heads.items()
        }
        frames, size = int(self.num_frames.sum()), int(self.chunk_length.sum())
        return {"videos": self.num_videos, "frames": frames, "bytes": size, "classes": classes}

    def save(self) -> storage.AnyPath:
        """Writes `index_{split}.npz` into `folder`, whole or not at all; returns its path."""
        path = self.folder / f"index_{self.name}.npz"
        arrays = {field: getattr(self, field) for field in _VIDEO_FIELDS + _CHUNK_FIELDS}
        arrays |= {f"label_{head}": values for head, values in self.labels.items()}
        arrays |= {"shards": np.array(list(self.shards), dtype=str), "chunk_frames": np.array(self.chunk_frames)}
        version = _FORMAT if self.multi_label else _SINGLE_LABEL_FORMAT
        arrays |= {"form": np.array(self.form), "format": np.array(version)}
        with storage.written(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
        return path


def open_split(folder: storage.PathLike, split: str) -> RecordSplit:
    """Opens the index of a split; shards are compared with it by size only (`vivit_jax.data.verify` reads them).

    Raises NoRecordsError (no index, or shards are missing), BadIndexError (unreadable, of a newer version, with values
    out of range, or shards have another size than indexed), EmptySplitError, ValueError for a damaged summary.
    """
    folder = storage.path(folder)
    path = folder / f"index_{split}.npz"
    if not path.is_file():
        raise NoRecordsError(_explain_missing_index(folder, split))
    opened = _load(path, split)
    if opened.num_videos == 0:
        raise EmptySplitError(f"{folder}: split {split!r} has no videos; see rejects.csv and summary.json there")
    stated = read_summary(folder).get("splits", {}).get(split) or {}
    for name, count in (("videos", opened.num_videos), ("frames", int(opened.num_frames.sum()))):
        if stated.get(name, count) != count:
            differ = f"{path} has {count} {name}, {folder / SUMMARY_FILE} states {stated[name]}"
            raise BadIndexError(f"{differ}: they are of different builds. Copy both again, from one build")
    shard_paths = opened.shard_paths
    sizes = storage.sizes(shard_paths)
    missing = [shard for shard, size in zip(shard_paths, sizes, strict=True) if size is None]
    if missing:
        many = f"{len(missing)} of {len(shard_paths)} shards are missing, first {missing[0]}"
        raise NoRecordsError(f"{folder}: {many}; put them back, or {_REBUILD} DIR")
    for shard, size, expected in zip(shard_paths, sizes, opened.shard_bytes.tolist(), strict=True):
        if size != expected:
            reasons = f"an incomplete copy, or records that were rebuilt since. Copy it again, or {_REBUILD} {folder}"
            raise BadIndexError(f"{shard} has {size:,} bytes, {expected:,} when {path} was made: {reasons}")
    return opened


def _load(path: storage.AnyPath, split: str) -> RecordSplit:
    names = load_class_names(path.parent)
    rebuild = f"{_REBUILD} {path.parent}"
    try:
        # Read whole: seeking in a file in a bucket costs a request each time.
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            arrays = {key: stored[key] for key in stored.files}
        version = int(arrays.get("format", 1))
        if version > _FORMAT:
            update = f"this version reads up to {_FORMAT}: update it, or {rebuild}"
            raise BadIndexError(f"{path} has format {version}, {update}")
        loaded = RecordSplit(
            folder=path.parent,
            name=split,
            shards=[str(shard) for shard in arrays["shards"]],
            labels={head: arrays[f"label_{head}"] for head in names},
            class_names=names,
            chunk_frames=int(arrays["chunk_frames"]),
            form=str(arrays.get("form", CHUNKS)),
            **{field: arrays[field] for field in _VIDEO_FIELDS + _CHUNK_FIELDS},
        )
        if problem := _find_problem(loaded):
            raise BadIndexError(f"{path}: {problem}; {rebuild}")
        return loaded
    except BadIndexError:
        raise
    except KeyError as error:
        raise BadIndexError(f"{path}: holds no array {error}; {rebuild}") from None
    except storage.NPZ_ERRORS as error:
        raise BadIndexError(f"{path}: unreadable ({error}); {rebuild}") from None


def _find_problem(split: RecordSplit) -> str | None:
    """Returns where the arrays of an index contradict each other or the class names."""
    videos, chunks, most = split.num_videos, len(split.chunk_shard), 10**15
    limits = dict.fromkeys(("num_frames", "height", "width", "num_chunks", "chunk_length"), (1, most))
    limits |= dict.fromkeys(("fps", "chunk_offset", "chunk_checksum"), (0, most))
    limits |= {"first_chunk": (0, chunks - 1), "chunk_shard": (0, len(split.shards) - 1)}
    checks = [(name, getattr(split, name), *low_high) for name, low_high in limits.items()]
    for head, ids in split.labels.items():
        checks.append((f"label {head!r}", ids, -1 if ids.ndim == 2 else 0, len(split.class_names[head]) - 1))
    for name, values, low, high in checks:
        length = chunks if name.startswith("chunk_") else videos
        if len(values) != length:
            return f"{len(values)} values of {name}, {length} expected"
        outside = (values < low) | (values > high)
        if len(wrong := np.flatnonzero(outside.any(axis=tuple(range(1, outside.ndim))))):
            which = f"record {wrong[0]}" if name.startswith("chunk_") else f"video {split.video_id[wrong[0]]}"
            return f"{name} of {which} is {values[wrong[0]]}, outside {low} to {high} ({len(wrong)} such entries)"
    order = np.argsort(split.first_chunk, kind="stable")
    first, end = split.first_chunk[order], (split.first_chunk + split.num_chunks)[order]
    if len(twice := np.flatnonzero(np.append(first, chunks)[1:] < end)):
        return f"listed twice, or with records of another: {', '.join(split.video_id[order[twice[0] : twice[0] + 2]])}"
    return None


def _explain_missing_index(folder: storage.AnyPath, split: str) -> str:
    shards = list_shards(folder)
    if split in shards:
        return f"{folder}: records of split {split!r} but no index; make it: python -m vivit_jax.data.index {folder}"
    splits = sorted(path.stem.removeprefix("index_") for path in folder.glob("index_*.npz")) or sorted(shards)
    if splits:
        return f"{folder}: no split {split!r}; there are {', '.join(splits)}"
    return (
        f"no records in {folder}; make them: "
        "python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR"
        f"\nor, for records of DMVR or Scenic, index them: python -m vivit_jax.data.index {folder}"
    )


def load_class_names(folder: storage.PathLike) -> dict[str, list[str]]:
    """Loads `class_names.json` of a folder of records: {head: name of each class id}."""
    path = storage.path(folder) / CLASS_NAMES_FILE
    if not path.is_file():
        advice = "copy it from where the records come from, or build them again"
        raise NoRecordsError(f"{folder}: no {CLASS_NAMES_FILE}, so the heads of the labels are unknown; {advice}")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadIndexError(f"{path}: not JSON ({error}); it must hold head -> list of class names") from None
    if not isinstance(names, dict) or not all(isinstance(of_head, list) for of_head in names.values()):
        raise BadIndexError(f"{path}: it must hold head -> list of class names")
    return names


def save_class_names(folder: storage.PathLike, class_names: Mapping[str, Sequence[str]]) -> None:
    """Writes `class_names.json`: head -> list of names."""
    text = json.dumps({head: list(names) for head, names in class_names.items()}, indent=1, ensure_ascii=False)
    storage.write(storage.path(folder) / CLASS_NAMES_FILE, text)


def list_shards(folder: storage.PathLike) -> dict[str, list[str]]:
    """Lists the shards of chunk records: {split: names in order}; raises NoRecordsError if some are missing."""
    return group_shards(folder, storage.names(folder), _SHARD)


def group_shards(folder: storage.PathLike, names: Sequence[str], pattern: re.Pattern) -> dict[str, list[str]]:
    """Groups sorted file names by the group `base` of a pattern; ignores others and hidden ones.

    Raises NoRecordsError unless the groups `number` of the pattern are 0 to `count` - 1.
    """
    shards: dict[str, list[str]] = {}
    numbers: dict[tuple[str, int], list[int]] = {}
    for name in names:
        if name[0] != "." and (match := pattern.fullmatch(name)):
            shards.setdefault(match["base"], []).append(name)
            if match["count"]:
                numbers.setdefault((match["base"], int(match["count"])), []).append(int(match["number"]))
    for (base, count), present in numbers.items():
        if present != list(range(count)) or len(present) < len(shards[base]):
            incomplete = f"{folder}: {base} has {len(shards[base])} of {count} shards"
            raise NoRecordsError(f"{incomplete}; copy the missing ones, and remove others")
    return shards


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
    """Returns offset, length and masked CRC-32C of the data of every record of a TFRecord file: int64 [records, 3].

    It skips the data, which are not verified. ValueError for a file that is cut short.
    """
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
