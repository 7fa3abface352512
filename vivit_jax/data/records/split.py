"""Where every record lies: one small `.npz` per split, so that any clip can be read without reading what is before it.

A record is a chunk of up to 16 consecutive frames of one video, as JPEG bytes in a `tf.train.Example`, in TFRecord
shards (framing of a record: 8 bytes length, 4 bytes checksum of the length, the data, 4 bytes masked CRC-32C of the
data, all little-endian). All chunks of a video lie one behind the other in one shard.

    python -m vivit_jax.data.index DIR      makes the index of the records in DIR anew, by reading them

Records of others, one `tf.train.SequenceExample` for a whole video as Scenic and DMVR keep them, are indexed by the
same command and read where they lie; `--help` lists the flags for their splits and labels (module `dmvr`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.data.paths import CLASS_NAMES_FILE, REJECTS_FILE, SUMMARY_FILE
from vivit_jax.utils import storage

CHUNK_FRAMES = 16
# Forms of a record: a chunk of a video in an Example, or all of it in a SequenceExample.
CHUNKS, SEQUENCE = "chunks", "sequence"
_VIDEO_FIELDS = ("video_id", "num_frames", "fps", "height", "width", "first_chunk", "num_chunks")
_CHUNK_FIELDS = ("chunk_shard", "chunk_offset", "chunk_length", "chunk_checksum")
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<shard>\d{5})-of-(?P<count>\d{5})$")
# Of the index files. Those of format 1 had no `form` and are read as chunks; in format 3 a head may have several
# labels, and without such a head format 2 is written, which older versions read.
_FORMAT, _ONE_LABEL_FORMAT = 3, 2
_ANEW = "make the index anew: python -m vivit_jax.data.index"


class NoRecordsError(FileNotFoundError):
    """There are no records (or no index) where they were looked for; the message names the folder and the way out."""


class EmptySplitError(ValueError):
    """A split without a single video."""


class BadIndexError(ValueError):
    """An index that cannot be read, or that is not that of the shards beside it; the message says the way out."""


@dataclasses.dataclass(frozen=True)
class RecordSplit:
    """One split of a data set on disk: N videos in C chunks.

    Attributes:
      folder: where the index is, and the shards unless their names are absolute.
      name: of the split.
      shards: file names of the shards.
      video_id: [N] names of the videos (one name may come several times: segments of one long video).
      num_frames, height, width: int32 [N]; sizes are those of the stored frames, in pixels.
      fps: float32 [N], frames per second of the source; NaN where records of others do not tell.
      labels: head -> int32 [N], class ids; of a head with several labels at once int32 [N, L], the ids of each video in
        rising order, filled up with -1 to the L of the video with the most.
      first_chunk, num_chunks: int64 [N], place in the chunk arrays.
      chunk_shard, chunk_offset, chunk_length: int64 [C]: number of the shard, first byte of the record in it, bytes of
        the record's data.
      chunk_checksum: uint32 [C], masked CRC-32C of the data, as in the shard.
      class_names: head -> name of each class id.
      chunk_frames: frames in each chunk but a video's last; of sequences, at least those of the longest video.
      form: "chunks", or "sequence": each record is a whole video, and records that hold no usable one belong to none.
    """

    folder: storage.AnyPath
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
    form: str = CHUNKS

    @property
    def num_videos(self) -> int:
        return len(self.video_id)

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes."""
        return {head: len(names) for head, names in self.class_names.items()}

    @property
    def multi_label(self) -> frozenset[str]:
        """Heads of which a video may have several labels at once, or none."""
        return frozenset(head for head, ids in self.labels.items() if ids.ndim == 2)

    @property
    def shard_paths(self) -> list[str]:
        return [str(storage.under(self.folder, shard)) for shard in self.shards]

    @property
    def record_bytes(self) -> int:
        """Bytes of all records of the split."""
        return int(self.chunk_length.sum())

    @property
    def shard_bytes(self) -> np.ndarray:
        """int64 [shards]: size of each shard, which is where its last record ends."""
        sizes = np.zeros(len(self.shards), np.int64)
        np.maximum.at(sizes, self.chunk_shard, self.chunk_offset + self.chunk_length + 16)
        return sizes

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Head -> name of each class that some video has -> number of its videos."""
        return {
            head: {
                self.class_names[head][i]: int(count)
                for i, count in zip(*np.unique(ids[ids >= 0], return_counts=True), strict=True)
            }
            for head, ids in self.labels.items()
        }

    def save(self) -> storage.AnyPath:
        """Writes `index_{split}.npz` into `folder`, whole or not at all; returns its path."""
        path = self.folder / f"index_{self.name}.npz"
        arrays = {field: getattr(self, field) for field in _VIDEO_FIELDS + _CHUNK_FIELDS}
        arrays |= {f"label_{head}": values for head, values in self.labels.items()}
        arrays |= {"shards": np.array(list(self.shards), dtype=str), "chunk_frames": np.array(self.chunk_frames)}
        number = _FORMAT if self.multi_label else _ONE_LABEL_FORMAT
        arrays |= {"form": np.array(self.form), "format": np.array(number)}
        with storage.written(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
        return path


def open_split(folder: storage.PathLike, split: str) -> RecordSplit:
    """The index of `split` of the records in `folder`.

    That the shards are those that were indexed is told by their sizes alone; `vivit_jax.data.verify` reads them.

    Raises:
      NoRecordsError: no index there, or shards are gone (the message says how to make the records or the index).
      BadIndexError: the index is unreadable or of a newer version, or shards have another size than when it was made.
      EmptySplitError: the split has no videos.
    """
    folder = storage.path(folder)
    path = folder / f"index_{split}.npz"
    if not path.is_file():
        raise NoRecordsError(_why_no_index(folder, split))
    result = _load(path, split)
    if result.num_videos == 0:
        raise EmptySplitError(f"{folder}: split {split!r} has no videos; see {REJECTS_FILE} and {SUMMARY_FILE} there")
    found = storage.sizes(result.shard_paths)
    missing = [shard for shard, size in zip(result.shard_paths, found, strict=True) if size is None]
    if missing:
        raise NoRecordsError(
            f"{folder}: {len(missing)} of {len(result.shards)} shards are gone, first {missing[0]}; put them back, or "
            f"{_ANEW} DIR"
        )
    for shard, size, expected in zip(result.shard_paths, found, result.shard_bytes.tolist(), strict=True):
        if size != expected:
            raise BadIndexError(
                f"{shard} has {size:,} bytes, {expected:,} when {path} was made: the copy is not "
                f"complete, or the records were made anew since. Copy it again, or {_ANEW} {folder}"
            )
    return result


def _load(path: storage.AnyPath, split: str) -> RecordSplit:
    names = load_class_names(path.parent)
    try:
        # All arrays are wanted, and to seek in a file of a bucket costs a request each time.
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            arrays = {key: stored[key] for key in stored.files}
        number = int(arrays.get("format", 1))
        if number > _FORMAT:
            raise BadIndexError(
                f"{path} is of format {number}, this version reads up to {_FORMAT}: update it, or {_ANEW} {path.parent}"
            )
        return RecordSplit(
            folder=path.parent,
            name=split,
            shards=[str(shard) for shard in arrays["shards"]],
            labels={head: arrays[f"label_{head}"] for head in names},
            class_names=names,
            chunk_frames=int(arrays["chunk_frames"]),
            form=str(arrays.get("form", CHUNKS)),
            **{field: arrays[field] for field in _VIDEO_FIELDS + _CHUNK_FIELDS},
        )
    except KeyError as error:
        raise BadIndexError(f"{path}: holds no array {error}; {_ANEW} {path.parent}") from None
    except (zipfile.BadZipFile, OSError, EOFError, TypeError) as error:
        raise BadIndexError(f"{path}: unreadable ({error}); {_ANEW} {path.parent}") from None
    except ValueError as error:
        if isinstance(error, BadIndexError):
            raise
        raise BadIndexError(f"{path}: unreadable ({error}); {_ANEW} {path.parent}") from None


def _why_no_index(folder: storage.AnyPath, split: str) -> str:
    shards = list_shards(folder)
    if split in shards:
        return f"{folder}: records of split {split!r} but no index; make it: python -m vivit_jax.data.index {folder}"
    there = sorted(p.stem.removeprefix("index_") for p in folder.glob("index_*.npz")) or sorted(shards)
    if there:
        return f"{folder}: no split {split!r}; there are {', '.join(there)}"
    return (
        f"no records in {folder}; make them: "
        "python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR"
        f"\nor, where they are of DMVR or Scenic, index them: python -m vivit_jax.data.index {folder}"
    )


def load_class_names(folder: storage.PathLike) -> dict[str, list[str]]:
    """`class_names.json` of a folder of records: head -> name of each class id.

    Raises:
      NoRecordsError: it is not there.
      BadIndexError: it does not hold a list of names for each head.
    """
    path = storage.path(folder) / CLASS_NAMES_FILE
    if not path.is_file():
        raise NoRecordsError(
            f"{folder}: no {CLASS_NAMES_FILE}, so the heads of the labels are unknown; copy it from where the records "
            "come from, or build them again"
        )
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadIndexError(f"{path}: not JSON ({error}); it must hold head -> list of class names") from None
    if not isinstance(names, dict) or not all(isinstance(of_head, list) for of_head in names.values()):
        raise BadIndexError(f"{path}: it must hold head -> list of class names")
    return names


def list_shards(folder: storage.PathLike) -> dict[str, list[str]]:
    """Split -> names of its shards in order.

    Raises:
      NoRecordsError: a split of which some shards are missing.
    """
    found: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name in storage.names(folder):
        match = _SHARD.match(name)
        if match:
            found.setdefault(match["split"], {})[int(match["shard"])] = name
            counts[match["split"]] = int(match["count"])
    for split, shards in found.items():
        if sorted(shards) != list(range(counts[split])):
            raise NoRecordsError(f"{folder}: split {split!r} has {len(shards)} of {counts[split]} shards")
    return {split: [shards[i] for i in sorted(shards)] for split, shards in found.items()}


def save_class_names(folder: storage.PathLike, class_names: Mapping[str, Sequence[str]]) -> None:
    """Writes `class_names.json`: head -> list of names."""
    text = json.dumps({head: list(names) for head, names in class_names.items()}, indent=1, ensure_ascii=False)
    storage.write(storage.path(folder) / CLASS_NAMES_FILE, text)
