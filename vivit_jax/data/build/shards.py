"""The shards of a build: planning, encoding, writing, and restoring after an interruption.

A shard is first written into a staging folder, with metadata beside it: its videos, record positions and rejects. So
any process can write it, also on another machine.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivit_jax.data import annotations, workers
from vivit_jax.data.build import BuildOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.split import CHUNK_FRAMES, VideoEntry, record_positions
from vivit_jax.data.video import encode
from vivit_jax.utils import storage

# Part of the fingerprint of unfinished builds; increased when the format of records or metadata changes.
_FORMAT = 4


@dataclasses.dataclass(frozen=True)
class File:
    """One video file and its rows."""

    path: storage.AnyPath | None  # None if the file was not found
    first_row: int  # number of the first of `rows` in the split, in the order of the records
    rows: Sequence[annotations.Row]
    segments: Sequence[tuple[float | None, float | None]]  # (start, end) in seconds; (None, None): the whole file


@dataclasses.dataclass
class Shard:
    """One shard: its files and, once `done`, its content."""

    split: str
    number: int
    files: list[File]
    videos: list[VideoEntry] = dataclasses.field(default_factory=list)
    positions: np.ndarray | None = None  # see `record_positions`
    rejects: list[tuple[str, ...]] = dataclasses.field(default_factory=list)  # (split, video, start, end, reason)
    varying: int = 0  # videos with a variable frame rate
    repaired: int = 0  # frames whose time stamps were missing or did not increase
    done: bool = False  # whether it is written

    @property
    def digest(self) -> str:
        """A hash of the files and rows. A stored shard with another is built again: a missing video has arrived."""
        rows = [[str(f.path), f.segments, f.first_row, [[r.video, dict(r.labels)] for r in f.rows]] for f in self.files]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def num_rows(self) -> int:
        return sum(len(file.rows) for file in self.files)

    def path(self, staging: storage.AnyPath) -> storage.AnyPath:
        return staging / f"{self.split}-{self.number:05d}.tfrecord"

    def metadata_path(self, staging: storage.AnyPath) -> storage.AnyPath:
        return self.path(staging).with_suffix(".json")


def plan(
    split: str, rows: Sequence[annotations.Row], video_files: annotations.VideoFiles, rows_per_shard: int
) -> list[Shard]:
    """Assigns the rows of a split to shards, at least one.

    Rows of one file stay together, so that it is decoded once; otherwise the order is that of the annotations.
    """
    rows_of_file: dict[Any, list[tuple[annotations.Row, Any, tuple[float | None, float | None]]]] = {}
    for number, row in enumerate(rows):
        path, *segment = video_files.find(row) or (None, None, None)
        # The possible file names are no longer needed, and take most of the memory of a row.
        row = dataclasses.replace(row, names=())
        rows_of_file.setdefault(path or number, []).append((row, path, tuple(segment)))
    shards = [Shard(split, 0, [])]
    first_row = 0
    for group in rows_of_file.values():
        rows, paths, segments = zip(*group, strict=True)
        if shards[-1].num_rows >= rows_per_shard:
            shards.append(Shard(split, len(shards), []))
        shards[-1].files.append(File(paths[0], first_row, rows, segments))
        first_row += len(rows)
    return shards


def fingerprint(options: BuildOptions) -> str:
    """Returns a hash of the options that determine the frames; a build continues only shards of the same hash."""
    of_frames = [getattr(options, field.name) for field in dataclasses.fields(encode.EncodeOptions)]
    return hashlib.sha256(json.dumps([_FORMAT, of_frames]).encode()).hexdigest()[:12]


def encode_files(
    files: Sequence[File], options: BuildOptions, folder: storage.AnyPath
) -> Iterator[list[encode.Segment | str]]:
    """Yields for each file the result of `encode.encode_file`, valid until the next; a crash is a reason, too.

    The JPEGs of long videos are kept in files in `folder`, or in the temporary folder if that is in a bucket.
    """
    local = None if storage.is_remote(folder) else folder
    with tempfile.TemporaryDirectory(prefix="jpegs-", dir=local, ignore_cleanup_errors=True) as spool:
        tasks = [
            encode.FileTask(file.path, file.segments, options, Path(spool, str(number)))
            for number, file in enumerate(files)
            if file.path
        ]
        results = workers.ordered_map("vivit_jax.data.video.encode:encode_file", tasks, options.num_workers)
        for number, file in enumerate(files):
            if file.path is None:
                yield ["no such video in the videos' folder (or several of this name)"] * len(file.rows)
                continue
            result = next(results)
            if isinstance(result, workers.WorkerError):
                result = [f"{file.path}: the decoder crashed: {result}"] * len(file.rows)
            yield result
            Path(spool, str(number)).unlink(missing_ok=True)


def write(
    shard: Shard,
    staging: storage.AnyPath,
    encoded: Iterator[list[encode.Segment | str]],
    on_file: Callable[[File], None] = lambda file: None,
) -> None:
    """Writes a planned shard and its metadata into the folder `staging`, and fills `shard` with its content.

    `encoded` yields the results of `encode_files`.
    """
    shard.videos, shard.rejects, shard.varying, shard.repaired = [], [], 0, 0
    # `written` renames at the end, so that two workers with the same shard do not mix.
    with storage.written(shard.path(staging)) as partial:
        with tf.io.TFRecordWriter(os.fsencode(partial)) as writer:
            for file in shard.files:
                for number, (row, segment) in enumerate(zip(file.rows, next(encoded), strict=True), file.first_row):
                    if isinstance(segment, str):
                        times = ("" if seconds is None else f"{seconds:g}" for seconds in (row.start, row.end))
                        shard.rejects.append((shard.split, row.video, *times, segment))
                        continue
                    for record in _records(row, number, segment):
                        writer.write(record)
                    size = (segment.height, segment.width)
                    video = VideoEntry(row.video, len(segment.frames), segment.fps, *size, dict(row.labels))
                    shard.videos.append(video)
                    shard.varying += segment.varies
                    shard.repaired += segment.repaired
                on_file(file)
        shard.positions = record_positions(partial)
        num_bytes = storage.size(partial)
    metadata = {name: getattr(shard, name) for name in ("rejects", "varying", "repaired")}
    metadata |= {"bytes": num_bytes, "digest": shard.digest, "positions": shard.positions.tolist()}
    metadata["videos"] = [dataclasses.asdict(video) for video in shard.videos]
    # The metadata comes last: a shard with metadata is complete.
    storage.write(shard.metadata_path(staging), json.dumps(metadata))
    shard.done = True


def restore(shard: Shard, staging: storage.AnyPath) -> None:
    """Fills `shard` from its metadata in `staging`, if it is completely there."""
    path, metadata_path = shard.path(staging), shard.metadata_path(staging)
    if not (metadata_path.is_file() and path.is_file()):
        return
    metadata = json.loads(metadata_path.read_text(encoding="utf-8"))
    if metadata["bytes"] != storage.size(path) or metadata["digest"] != shard.digest:
        return
    shard.videos = [VideoEntry(**video) for video in metadata["videos"]]
    shard.positions = np.array(metadata["positions"], np.int64).reshape(-1, 3)
    shard.rejects = [tuple(reject) for reject in metadata["rejects"]]
    shard.varying, shard.repaired, shard.done = metadata["varying"], metadata["repaired"], True


def _records(row: annotations.Row, number: int, segment: encode.Segment) -> Iterator[bytes]:
    """Yields the records of a segment's chunks (see `records.features`); `number` is that of the row."""
    for chunk, start in enumerate(range(0, len(segment.frames), CHUNK_FRAMES)):
        features: dict[str, Sequence[Any]] = {}
        for head, ids in row.labels.items():  # two names, so that the records show which heads are multi-label
            single = isinstance(ids, int)
            features[f"label/{head}" if single else f"labels/{head}"] = [ids] if single else ids
        features |= {"video_id": [row.video.encode()], "row": [number], "chunk": [chunk]}
        features |= {"num_frames": [len(segment.frames)], "fps": [float(segment.fps)]}
        features |= {"height": [segment.height], "width": [segment.width]}
        features["frames"] = [segment.jpegs[i] for i in segment.frames[start : start + CHUNK_FRAMES]]
        example = tf.train.Example()
        for name, values in features.items():
            feature = example.features.feature[name]
            lists = {bytes: feature.bytes_list, float: feature.float_list}
            lists.get(type(values[0]) if values else int, feature.int64_list).value[:] = values
        # By default protobuf orders the features by a hash with a seed of the process.
        yield example.SerializeToString(deterministic=True)
