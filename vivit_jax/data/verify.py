"""Reads all records of a folder and says what is wrong with them.

    python -m vivit_jax.data.verify DIR [--threads=N]

Every record is read and its checksum compared, with the data and with the index; parsed; every JPEG decoded; frames,
sizes, labels and the order of chunks (or of times) compared with the index, and the totals with `summary.json`. Ends
with exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.paths import SUMMARY_FILE
from vivit_jax.data.records import reader, scan
from vivit_jax.data.records.split import (
    CLASS_NAMES_FILE,
    SEQUENCE,
    NoRecordsError,
    RecordSplit,
    list_shards,
    load_class_names,
    open_split,
)
from vivit_jax.utils import progress_bar, storage

# Of each split so many problems are printed; all are counted.
LISTED = 100
_TIMES = "image/timestamp"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong, and where: name of the shard ("" for the split itself), record in it, first byte of the record."""

    shard: str
    record: int | None
    byte: int | None
    reason: str

    def __str__(self) -> str:
        place = "" if self.record is None else f", record {self.record} at byte {self.byte}"
        return f"{self.shard}{place}: {self.reason}" if self.shard else self.reason


@dataclasses.dataclass
class Report:
    """What was found in one split; `left_out`: records that the index leaves out (rejects.csv beside it says why)."""

    split: str
    videos: int = 0
    records: int = 0
    frames: int = 0
    bytes: int = 0
    left_out: int = 0
    num_problems: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, reason: str, shard: str = "", record: int | None = None, byte: int | None = None) -> None:
        self.num_problems += 1
        if len(self.problems) < LISTED:
            self.problems.append(Problem(shard, record, byte, reason))


def verify(folder: storage.PathLike, threads: int | None = None, progress: bool = True) -> list[Report]:
    """Verifies all splits of a folder.

    Memory: each thread reads one record at a time (twice, as read and parsed) and decodes its frames one by one.

    Args:
      folder: with the index of each split.
      threads: None for one a core.
      progress: show a progress bar.

    Raises:
      NoRecordsError: no index in `folder`.
      BadIndexError: `class_names.json` cannot be used.
      ValueError: fewer than one thread.
    """
    folder = storage.path(folder)
    names = sorted(path.stem.removeprefix("index_") for path in folder.glob("index_*.npz"))
    if not names:
        raise NoRecordsError(
            f"{folder}: no index of records (index_*.npz); make it: python -m vivit_jax.data.index {folder}"
        )
    class_names = load_class_names(folder)
    opened, reports = {}, []
    for name in names:
        reports.append(Report(name))
        try:
            opened[name] = open_split(folder, name)
        except (FileNotFoundError, ValueError) as error:
            reports[-1].add(f"split {name!r} cannot be opened: {error}")
    total = sum(split.num_videos for split in opened.values())
    with progress_bar.bar(title=f"{folder.name}: verify", total=total, show=progress) as bar:
        for report in reports:
            if report.split in opened:
                _verify_split(opened[report.split], report, threads, bar)
    _compare_class_names(class_names, reports[0])
    _compare_summary(folder, reports)
    if not any(split.form == SEQUENCE for split in opened.values()):
        _find_unindexed(folder, reports)
    return reports


def _verify_split(split: RecordSplit, report: Report, threads: int | None, bar) -> None:
    video_of = np.full(len(split.chunk_offset), -1, np.int64)
    for video, (first, count) in enumerate(zip(split.first_chunk, split.num_chunks, strict=True)):
        video_of[first : first + count] = video
    wanted = np.flatnonzero(video_of >= 0)
    # Records of a shard are numbered from its first: the arrays hold all of them, in order.
    first_of_shard = np.searchsorted(split.chunk_shard, np.arange(len(split.shards)))
    report.left_out = len(video_of) - len(wanted)
    for head, ids in split.labels.items():
        limit, several = len(split.class_names[head]) - 1, head in split.multi_label
        wrong = (ids < (-1 if several else 0)) | (ids > limit)
        for video in np.flatnonzero(wrong.any(axis=1) if several else wrong).tolist():
            report.add(f"index: video {video}, {split.video_id[video]}: {head} {ids[video]} is outside 0 to {limit}")
    frames = 0
    records = scan.mapped(
        split.shard_paths, split.chunk_shard[wanted], split.chunk_offset[wanted], _contents(split), split.form, threads
    )
    with _Framing(split) as framing:
        for place, found in records:
            number = int(wanted[place])
            video, shard = int(video_of[number]), int(split.chunk_shard[number])
            reasons = framing.differences(number)
            if isinstance(found, str):
                reasons.append(found)
            else:
                reasons += _differences(split, video, number - int(split.first_chunk[video]), found)
                report.frames += len(found["sizes"])
            for reason in reasons:
                place_in_shard = number - int(first_of_shard[shard])
                report.add(reason, split.shards[shard], place_in_shard, int(split.chunk_offset[number]))
            report.records += 1
            report.bytes += int(split.chunk_length[number])
            frames += 1
            if frames == split.num_chunks[video]:
                report.videos, frames = report.videos + 1, 0
                bar.update()


def _contents(split: RecordSplit):
    """A function in the graph: serialised record -> all that is compared, with every frame decoded."""
    labels = {_label_feature(split, head): tf.io.RaggedFeature(tf.int64) for head in split.labels}
    fixed = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("chunk", "num_frames", "height", "width")}

    def size(jpeg):
        return tf.shape(tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE"))[:2]

    def contents(record):
        jpegs = reader.jpegs_of(split.form, record[None])
        # One frame at a time, so that a long video does not lie decoded in memory.
        sizes = tf.map_fn(size, jpegs, fn_output_signature=tf.TensorSpec([2], tf.int32), parallel_iterations=1)
        if split.form == SEQUENCE:
            times = {_TIMES: tf.io.RaggedFeature(tf.int64)}
            found = tf.io.parse_single_sequence_example(record, sequence_features=times)[1]
            return {"sizes": sizes, "times": found[_TIMES].flat_values}
        found = tf.io.parse_single_example(record, fixed | labels | {"video_id": tf.io.FixedLenFeature([], tf.string)})
        return {"sizes": sizes, **found}

    return contents


def _label_feature(split: RecordSplit, head: str) -> str:
    return f"{'labels' if head in split.multi_label else 'label'}/{head}"


def _differences(split: RecordSplit, video: int, chunk: int, found: dict[str, Any]) -> list[str]:
    """What a record says otherwise than the index."""
    reasons = []
    left = int(split.num_frames[video]) - chunk * split.chunk_frames
    expected = min(left, split.chunk_frames)
    if len(found["sizes"]) != expected:
        reasons.append(f"{len(found['sizes'])} frames, {expected} in the index")
    size = [int(split.height[video]), int(split.width[video])]
    for number in np.flatnonzero((found["sizes"] != size).any(axis=1))[:1]:
        other = found["sizes"][number].tolist()
        reasons.append(
            f"frame {number} is {other[0]} x {other[1]}, {size[0]} x {size[1]} (height x width) in the index"
        )
    if split.form == SEQUENCE:
        times = found["times"]
        if len(times) and len(times) != len(found["sizes"]):
            reasons.append(f"{len(times)} times for {len(found['sizes'])} frames")
        for number in np.flatnonzero(np.diff(times) <= 0)[:1]:
            reasons.append(f"the time of frame {number + 1} is not after that of the frame before")
        return reasons
    expected = {
        "video_id": str(split.video_id[video]),
        "chunk": chunk,
        "num_frames": int(split.num_frames[video]),
        "height": size[0],
        "width": size[1],
    }
    for head, ids in split.labels.items():
        expected[_label_feature(split, head)] = [int(i) for i in np.atleast_1d(ids[video]) if i >= 0]
    for name, value in expected.items():
        got = found[name].decode("utf-8", "replace") if name == "video_id" else found[name].tolist()
        if got != value:
            reasons.append(f"{name} is {got}, {value} in the index")
    return reasons


class _Framing(contextlib.AbstractContextManager):
    """Compares length and checksum of records in the shards with those in the index; one shard is open at a time."""

    def __init__(self, split: RecordSplit):
        self._split, self._open, self._stack = split, -1, contextlib.ExitStack()
        self._file: BinaryIO | None = None

    def differences(self, number: int) -> list[str]:
        split = self._split
        shard, offset, length = (int(x[number]) for x in (split.chunk_shard, split.chunk_offset, split.chunk_length))
        if shard != self._open:
            self._stack.close()
            # Of a bucket a copy: a request for each few bytes would take longer.
            here = self._stack.enter_context(storage.local(split.shard_paths[shard]))
            self._file, self._open = self._stack.enter_context(here.open("rb")), shard
        stored = struct.unpack("<Q", self._read(offset, 8))[0]
        if stored != length:
            return [f"its length is {stored}, {length} in the index"]
        checksum = struct.unpack("<I", self._read(offset + 12 + length, 4))[0]
        if checksum != split.chunk_checksum[number]:
            return [f"its checksum is {checksum:08x}, {int(split.chunk_checksum[number]):08x} in the index"]
        return []

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count).ljust(count, b"\0")

    def __exit__(self, *exception) -> None:
        self._stack.close()


def _compare_class_names(class_names: dict[str, list[str]], report: Report) -> None:
    for head, names in class_names.items():
        if not names or not all(isinstance(name, str) and name for name in names):
            report.add(f"{CLASS_NAMES_FILE}: head {head!r} has no names, or empty ones")


def _compare_summary(folder: storage.AnyPath, reports: Sequence[Report]) -> None:
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return
    try:
        summary = dict(json.loads(path.read_text(encoding="utf-8"))["splits"])
    except (ValueError, KeyError, TypeError) as error:
        reports[0].add(f"{path}: unreadable ({error})")
        return
    for report in reports:
        if report.num_problems:  # the totals would differ too
            continue
        stated = summary.get(report.split, {})
        for name in ("videos", "frames"):
            found = getattr(report, name)
            if stated.get(name) != found:
                report.add(f"{path.name} states {stated.get(name)} {name} in split {report.split!r}, found are {found}")


def _find_unindexed(folder: storage.AnyPath, reports: Sequence[Report]) -> None:
    try:
        for split in sorted(list_shards(folder).keys() - {report.split for report in reports}):
            reports[0].add(f"shards of split {split!r} have no index: python -m vivit_jax.data.index {folder}")
    except NoRecordsError as error:
        reports[0].add(str(error))


def table(reports: Sequence[Report]) -> str:
    """The reports as text: a line a split, and what is wrong."""
    lines = [f"{'split':14}{'videos':>10}{'records':>10}{'frames':>12}{'GB':>9}{'left out':>10}{'problems':>10}"]
    for report in reports:
        lines.append(
            f"{report.split:14}{report.videos:10,}{report.records:10,}{report.frames:12,}{report.bytes / 1e9:9.3f}"
            f"{report.left_out:10,}{report.num_problems:10,}"
        )
    for report in reports:
        lines += [str(problem) for problem in report.problems]
        if report.num_problems > len(report.problems):
            lines.append(f"{report.split}: and {report.num_problems - len(report.problems):,} more")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vivit_jax.data.verify",
        description="Reads and decodes all records of a folder and says what is wrong with them.",
    )
    parser.add_argument("folder", metavar="DIR", help="with the records' index")
    parser.add_argument(
        "--threads", type=int, default=None, help="records read at the same time; one a core when left out"
    )
    flags = parser.parse_args(argv)
    try:
        reports = verify(flags.folder, flags.threads)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(reports))
    if any(report.num_problems for report in reports):
        raise SystemExit(1)
    print("all records are sound")


if __name__ == "__main__":
    main()
