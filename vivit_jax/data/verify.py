"""Reads and decodes all records of a folder, and reports every difference from the index and the summary.

    python -m vivit_jax.data.verify DIR [--threads=N]

Checks the checksum of every record against its data and against the index, every JPEG, frame counts, sizes, labels, the
order of chunks (or time stamps), class names, and the totals of `summary.json`. Exits with 1 if there is a problem.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vivit_jax.data.host_tf import tf
from vivit_jax.data.paths import CLASS_NAMES_FILE
from vivit_jax.data.records import scan
from vivit_jax.data.records import split as index
from vivit_jax.data.records.split import SEQUENCE, NoRecordsError, RecordSplit
from vivit_jax.utils import storage, terminal

PRINTED = 100  # problems per split that are printed; all are counted
_TIMES = "image/timestamp"


@dataclasses.dataclass
class Report:
    """Counts and problems of one split."""

    split: str
    videos: int = 0
    records: int = 0
    frames: int = 0
    bytes: int = 0
    left_out: int = 0  # records that the index leaves out (see rejects.csv)
    problems: list[str] = dataclasses.field(default_factory=list)


def verify(folder: storage.PathLike, threads: int | None = None, progress: bool = True) -> list[Report]:
    """Verifies all splits of a folder of records with an index, `threads` records at once (None: one per core).

    One record and one decoded frame per thread are in memory. Raises NoRecordsError where there is no index,
    BadIndexError where its class names cannot be used.
    """
    folder = storage.path(folder)
    names = sorted(path.stem.removeprefix("index_") for path in folder.glob("index_*.npz"))
    if not names:
        raise NoRecordsError(f"{folder}: no index of records (make it: python -m vivit_jax.data.index {folder})")
    class_names = index.load_class_names(folder)
    splits, reports = [], [Report(name) for name in names]
    for report in reports:
        try:
            splits.append((index.open_split(folder, report.split), report))
        except (FileNotFoundError, ValueError) as error:
            report.problems.append(f"split {report.split!r} cannot be opened: {error}")
    total = sum(split.num_videos for split, _ in splits)
    with terminal.progress_bar(title=f"{folder.name}: verify", total=total, show=progress) as bar:
        for split, report in splits:
            _verify_split(split, report, threads, bar.update)
    for head, names in class_names.items():
        if not names or not all(isinstance(name, str) and name for name in names):
            reports[0].problems.append(f"{CLASS_NAMES_FILE}: head {head!r} has no names, or empty ones")
    if not any(split.form == SEQUENCE for split, _ in splits):
        try:
            for name in sorted(index.list_shards(folder).keys() - {report.split for report in reports}):
                without = f"shards of split {name!r} have no index"
                reports[0].problems.append(f"{without}: python -m vivit_jax.data.index {folder}")
        except NoRecordsError as error:
            reports[0].problems.append(str(error))
    return reports


def _verify_split(split: RecordSplit, report: Report, threads: int | None, on_video: Callable[[], Any]) -> None:
    # Video, chunk in the video, and record of each chunk in the index.
    video = np.repeat(np.arange(split.num_videos), split.num_chunks)
    chunk = np.arange(len(video)) - np.repeat(np.cumsum(split.num_chunks) - split.num_chunks, split.num_chunks)
    record = split.first_chunk[video] + chunk
    report.left_out = len(split.chunk_shard) - len(record)
    # The records of a shard are consecutive in the index.
    first_of_shard = np.searchsorted(split.chunk_shard, np.arange(len(split.shards)))
    framing = _framing(split)
    shards, offsets = split.chunk_shard[record], split.chunk_offset[record]
    results = scan.read_all(split.shard_paths, shards, offsets, split.form, decode=True, threads=threads)
    for position, content in results:
        number, shard = record[position], shards[position]
        reasons = [
            f"its {name} is {stored[number]:{form}}, {indexed[number]:{form}} in the index"
            for name, form, stored, indexed in framing
            if stored[number] != indexed[number]
        ][:1]
        if isinstance(content, str):
            reasons.append(content)
        else:
            reasons += _differences(split, int(video[position]), int(chunk[position]), *content)
            report.frames += len(content[1])
        where = f"{split.shards[shard]}, record {number - first_of_shard[shard]} at byte {offsets[position]}"
        report.problems += [f"{where}: {reason}" for reason in reasons]
        report.records += 1
        report.bytes += int(split.chunk_length[number])
        if chunk[position] + 1 == split.num_chunks[video[position]]:
            report.videos += 1
            on_video()


def _framing(split: RecordSplit) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Returns (name, format, values in the shards, values in the index) of the records' lengths and checksums."""
    lengths, checksums = np.zeros(len(split.chunk_offset), "<u8"), np.zeros(len(split.chunk_offset), "<u4")
    for shard, path in enumerate(split.shard_paths):
        records = split.chunk_shard == shard
        if not records.any():  # the shard of rows that were all rejected is empty
            continue
        # A bucket is copied: one request for each few bytes would take longer.
        with storage.local(path) as local_path:
            data = np.memmap(local_path, np.uint8, "r")
            start = split.chunk_offset[records, None]
            end = start + 12 + split.chunk_length[records, None]
            lengths[records] = data[start + np.arange(8)].view("<u8")[:, 0]
            checksums[records] = data[end + np.arange(4)].view("<u4")[:, 0]
    return [("length", "", lengths, split.chunk_length), ("checksum", "08x", checksums, split.chunk_checksum)]


def _differences(split: RecordSplit, video: int, chunk: int, record: bytes, sizes: np.ndarray) -> Iterator[str]:
    """Yields the differences between a record, whose frames have `sizes`, and the index."""
    num_frames, height, width = (int(of_all[video]) for of_all in (split.num_frames, split.height, split.width))
    expected_frames = min(num_frames - chunk * split.chunk_frames, split.chunk_frames)
    if len(sizes) != expected_frames:
        yield f"{len(sizes)} frames, {expected_frames} in the index"
    for frame in np.flatnonzero((sizes != (height, width)).any(axis=1))[:1]:
        size = " x ".join(map(str, sizes[frame]))
        yield f"frame {frame} is {size}, {height} x {width} (height x width) in the index"
    if split.form == SEQUENCE:
        lists = tf.train.SequenceExample.FromString(record).feature_lists.feature_list
        times = [time for feature in lists[_TIMES].feature for time in feature.int64_list.value]
        if len(times) not in (0, len(sizes)):
            yield f"{len(times)} times for {len(sizes)} frames"
        for frame in np.flatnonzero(np.diff(times) <= 0)[:1]:
            yield f"the time of frame {frame + 1} is not after that of the frame before"
        return
    features = tf.train.Example.FromString(record).features.feature
    expected = {"chunk": [chunk], "num_frames": [num_frames], "height": [height], "width": [width]}
    expected |= {"video_id": [str(split.video_id[video]).encode()]}
    for head, ids in split.labels.items():
        name = f"{'labels' if head in split.multi_label else 'label'}/{head}"
        expected[name] = [int(i) for i in np.atleast_1d(ids[video]) if i >= 0]
    for name, values in expected.items():
        stored = [*features[name].int64_list.value, *features[name].bytes_list.value]
        if stored != values:
            yield f"{name} is {stored}, {values} in the index"


def table(reports: Sequence[Report]) -> str:
    """Returns the reports as text: one line per split, then the problems."""
    lines = [f"{'split':14}{'videos':>10}{'records':>10}{'frames':>12}{'GB':>9}{'left out':>10}{'problems':>10}"]
    for report in reports:
        counts = f"{report.videos:10,}{report.records:10,}{report.frames:12,}{report.bytes / 1e9:9.3f}"
        lines.append(f"{report.split:14}{counts}{report.left_out:10,}{len(report.problems):10,}")
    for report in reports:
        lines += report.problems[:PRINTED]
        if len(report.problems) > PRINTED:
            lines.append(f"{report.split}: and {len(report.problems) - PRINTED:,} more")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="folder with the records' index")
    parser.add_argument("--threads", type=int, default=None, help="records read in parallel; default: one per core")
    parser.error = lambda text: argparse.ArgumentParser.error(parser, text + terminal.dash_advice(argv or sys.argv[1:]))
    flags = parser.parse_args(argv)
    try:
        reports = verify(flags.folder, flags.threads)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(table(reports))
    if any(report.problems for report in reports):
        raise SystemExit(1)
    print("all records are sound")


if __name__ == "__main__":
    main()
