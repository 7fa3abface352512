"""The shards of a build: which rows go into which, what is written of each, and what an interrupted build left.

Each shard is written beside the final folder first, whole or not at all, with its notes: what is in it and what was
rejected. So it does not matter who wrote it, this process or a worker of Beam on another machine, or when.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivit_jax.data import annotations, workers
from vivit_jax.data.records import indexing
from vivit_jax.data.records.split import CHUNK_FRAMES
from vivit_jax.data.video import encode
from vivit_jax.utils import storage

# Part of the fingerprint of half-done builds: raised when the records' or the notes' form changes.
_FORMAT = 3


@dataclasses.dataclass(frozen=True)
class File:
    """One video file with the rows that lie in it; `path` None where it was not found.

    Attributes:
      path: of the file.
      first_row: place of the first of `rows` among all rows of the split, in the order of the records.
      rows: of the annotations.
      segments: (start, end) in seconds for each row, (None, None) for the whole file.
    """

    path: storage.AnyPath | None
    first_row: int
    rows: Sequence[annotations.Row]
    segments: Sequence[tuple[float | None, float | None]]


@dataclasses.dataclass
class Shard:
    """One shard: the files that go into it and, once it is written, what it holds.

    Attributes:
      split, number: its place.
      files: what goes into it.
      videos: what was written, in order.
      positions: of the records, as of `indexing.record_positions`.
      rejects: (split, video, start, end, reason) of the rows that could not be used.
      varying: videos whose source has no steady frame rate.
      repaired: frames whose time stamps were missing or did not rise.
      done: whether it is written.
    """

    split: str
    number: int
    files: list[File]
    videos: list[indexing.VideoEntry] = dataclasses.field(default_factory=list)
    positions: np.ndarray | None = None
    rejects: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    varying: int = 0
    repaired: int = 0
    done: bool = False

    @property
    def num_rows(self) -> int:
        return sum(len(file.rows) for file in self.files)

    @property
    def num_chunks(self) -> int:
        """Records in it."""
        return sum(-(-video.num_frames // CHUNK_FRAMES) for video in self.videos)

    def staged(self, staging: storage.AnyPath) -> storage.AnyPath:
        """Where it is written, in the folder `staging`."""
        return staging / f"{self.split}-{self.number:05d}.tfrecord"

    def notes(self, staging: storage.AnyPath) -> storage.AnyPath:
        """The notes on it, which are written when it is whole."""
        return self.staged(staging).with_suffix(".json")


def plan(
    split: str, rows: Sequence[annotations.Row], video_files: annotations.VideoFiles, rows_per_shard: int
) -> list[Shard]:
    """The shards of a split, at least one.

    Rows of one file stay together, so that it is decoded once; else the order is that of the annotations.
    """
    grouped: dict[Any, list[tuple[annotations.Row, Any]]] = {}
    for number, row in enumerate(rows):
        found = video_files.find(row)
        # Where the files may lie is no longer of interest, and is most of a row's bytes.
        row = dataclasses.replace(row, names=())
        grouped.setdefault(found[0] if found else number, []).append((row, found))
    shards = [Shard(split, 0, [])]
    first_row = 0
    for group in grouped.values():
        found = group[0][1]
        file = File(
            path=found[0] if found else None,
            first_row=first_row,
            rows=[row for row, _ in group],
            segments=[place[1:] if place else (None, None) for _, place in group],
        )
        if shards[-1].num_rows >= rows_per_shard:
            shards.append(Shard(split, len(shards), []))
        shards[-1].files.append(file)
        first_row += len(group)
    return shards


def fingerprint(shards: Iterable[Shard], form: encode.EncodeOptions) -> str:
    """Of all that decides what is in which shard; a half-done build of anything else is not continued."""
    digest = hashlib.sha256(json.dumps([_FORMAT, dataclasses.astuple(form)]).encode())
    for shard in shards:
        files = [[str(f.path), f.segments, [[row.video, dict(row.labels)] for row in f.rows]] for f in shard.files]
        digest.update(json.dumps([shard.split, shard.number, files]).encode())
    return digest.hexdigest()[:12]


def encode_files(files: Iterable[File], form: encode.EncodeOptions, num_workers: int | None) -> Iterator[list]:
    """For each file the result of `encode.encode_file`; a file that kills its process gives the reason, too."""
    files = list(files)
    tasks = [encode.FileTask(file.path, file.segments, form) for file in files if file.path]
    results = workers.ordered_map("vivit_jax.data.video.encode:encode_file", tasks, num_workers)
    for file in files:
        if file.path is None:
            yield ["no such video in the videos' folder"] * len(file.rows)
            continue
        result = next(results)
        if isinstance(result, workers.WorkerError):
            result = [f"{file.path}: the decoder crashed: {result}"] * len(file.rows)
        yield result


def write(
    shard: Shard,
    staging: storage.AnyPath,
    encoded: Iterator[list],
    serialise: Callable[[Mapping[str, Any]], bytes],
    on_file: Callable[[File], None] = lambda file: None,
) -> None:
    """Writes a shard and its notes, and notes in `shard` what is in it.

    Args:
      shard: its files' results are taken from `encoded`.
      staging: folder.
      encoded: as `encode_files` yields.
      serialise: an example -> the bytes of its record.
      on_file: called when a file is written.
    """
    staged = shard.staged(staging)
    shard.videos, shard.rejects, shard.varying, shard.repaired = [], [], 0, 0
    # Of two workers that were given the same shard, each writes a whole one.
    with storage.written(staged) as partial:
        _write_records(shard, partial, encoded, serialise, on_file)
        shard.positions = indexing.record_positions(partial)
        size = storage.size(partial)
    notes = {
        "bytes": size,
        "videos": [dataclasses.asdict(video) for video in shard.videos],
        "positions": shard.positions.tolist(),
        "rejects": shard.rejects,
        "varying": shard.varying,
        "repaired": shard.repaired,
    }
    # The notes come last: a shard with notes is whole.
    storage.write(shard.notes(staging), json.dumps(notes))
    shard.done = True


def _write_records(
    shard: Shard,
    path: Path,
    encoded: Iterator[list],
    serialise: Callable[[Mapping[str, Any]], bytes],
    on_file: Callable[[File], None],
) -> None:
    from vivit_jax.data.host_tf import tf  # only here: planning needs no TensorFlow

    with tf.io.TFRecordWriter(str(path)) as writer:
        for file in shard.files:
            for number, (row, result) in enumerate(zip(file.rows, next(encoded), strict=True)):
                if isinstance(result, str):
                    reject = (shard.split, row.video, _text(row.start), _text(row.end), result)
                    shard.rejects.append(reject)
                    continue
                for example in _examples(row, file.first_row + number, result):
                    writer.write(serialise(example))
                shard.videos.append(
                    indexing.VideoEntry(
                        row.video, len(result.frames), result.fps, result.height, result.width, dict(row.labels)
                    )
                )
                shard.varying += result.varies
                shard.repaired += result.repaired
            on_file(file)


def restore(shard: Shard, staging: storage.AnyPath) -> None:
    """Takes over a shard that is in the folder `staging`: then it is `done`."""
    staged, notes = shard.staged(staging), shard.notes(staging)
    if not (notes.is_file() and staged.is_file()):
        return
    stored = json.loads(notes.read_text(encoding="utf-8"))
    if stored["bytes"] != storage.size(staged):
        return
    shard.videos = [indexing.VideoEntry(**video) for video in stored["videos"]]
    shard.positions = np.array(stored["positions"], np.int64).reshape(-1, 3)
    shard.rejects = [tuple(reject) for reject in stored["rejects"]]
    shard.varying, shard.repaired, shard.done = stored["varying"], stored["repaired"], True


def _examples(row: annotations.Row, number: int, segment: encode.Segment) -> Iterator[dict[str, Any]]:
    one = {head: ids for head, ids in row.labels.items() if isinstance(ids, int)}
    several = {head: list(ids) for head, ids in row.labels.items() if head not in one}
    for chunk, start in enumerate(range(0, len(segment.frames), CHUNK_FRAMES)):
        yield {
            "video_id": row.video,
            "row": number,
            "chunk": chunk,
            "num_frames": len(segment.frames),
            "fps": segment.fps,
            "height": segment.height,
            "width": segment.width,
            **({"label": one} if one else {}),
            **({"labels": several} if several else {}),
            "frames": [io.BytesIO(jpeg) for jpeg in segment.frames[start : start + CHUNK_FRAMES]],
        }


def _text(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g}"
