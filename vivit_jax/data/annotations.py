"""The official annotation files, untouched -> rows, and the video file that each row means.

Kinetics: `label,youtube_id,time_start,time_end,split[,is_cc]` (labels may be quoted, ids may begin with "-").
EPIC-Kitchens-100: `narration_id,participant_id,video_id,...` with verb_class and noun_class, and class files
`id,key,instances`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vivit_jax.data import catalog

KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
EPIC_COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".ts", ".mpg", ".mpeg")


class MissingDataError(FileNotFoundError):
    """Annotations or videos are missing; the message says where, what belongs there and how to get it."""


class AnnotationError(ValueError):
    """An annotation file that does not have the columns or values of its format."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One labelled stretch of video.

    Attributes:
      video: name of the video in the annotations (a YouTube id; EPIC's `P01_101`).
      start, end: seconds from the start of that video; None for the whole.
      labels: head -> class id, 0 to classes - 1.
      split: "train", "validation" or "test".
      names: places to look for the file in, relative to the videos' folder and without suffix, best first, each with
        True where the file holds exactly this stretch (so that nothing is left to cut).
    """

    video: str
    start: float | None
    end: float | None
    labels: Mapping[str, int]
    split: str
    names: tuple[tuple[str, bool], ...] = ()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All rows of a data set: split -> rows in the files' order, and class names: head -> name of each class id."""

    rows: Mapping[str, list[Row]]
    class_names: Mapping[str, list[str]]


def read(facts: catalog.DatasetFacts, folder: str | Path) -> Annotations:
    """The rows of every split whose file is in `folder`, in the official format of that data set.

    Raises:
      MissingDataError: no folder, or none of the files in it (splits without labels may be absent).
      AnnotationError: columns or values that are not the format's, or a format that this version does not read.
    """
    folder = Path(folder)
    readers = {"kinetics_csv": _read_kinetics, "epic_csv": _read_epic}
    if facts.annotation_format not in readers:
        raise AnnotationError(
            f"{facts.name}: annotation files of format {facts.annotation_format} are not read by this version; "
            f"readers exist for {', '.join(sorted(readers))}"
        )
    files = {}
    for split, names in facts.annotation_files.items():
        existing = [folder / name for name in names if (folder / name).is_file()]
        if existing:
            files[split] = existing[0]
    if "train" not in files:
        raise MissingDataError(missing_message(facts, annotations=folder))
    return readers[facts.annotation_format](facts, folder, files)


def missing_message(
    facts: catalog.DatasetFacts, videos: str | Path | None = None, annotations: str | Path | None = None
) -> str:
    """What a user without the data is told: folders looked in, what is expected there, how to get it."""
    wanted = ", ".join(" or ".join(names[:2]) for names in facts.annotation_files.values())
    classes = "".join(f", {name}" for name in facts.class_files.values())
    lines = [f"{facts.title} was not found."]
    if annotations is not None:
        lines.append(f"  looked for annotations in  {annotations}\n    expected there: {wanted}{classes}")
    if videos is not None:
        lines.append(f"  looked for videos in  {videos}\n    expected there: {facts.video_layout}")
    lines.append(f"  get it from  {facts.source}")
    lines.append(
        f"  then: python -m vivit_jax.data.build --dataset={facts.name} --videos=DIR --annotations=DIR --out=DIR"
    )
    return "\n".join(lines)


def _read_csv(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    # utf-8-sig: some mirrors put a byte-order mark in front of the first column's name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise AnnotationError(f"{path}: no column {', '.join(missing)}; found {', '.join(reader.fieldnames or ())}")
        rows = list(reader)
    if not rows:
        raise AnnotationError(f"{path}: no rows")
    return rows


def _read_kinetics(facts: catalog.DatasetFacts, folder: Path, files: Mapping[str, Path]) -> Annotations:
    tables = {}
    for split, path in files.items():
        columns = ("youtube_id", "time_start", "time_end") + (() if split == "test" else ("label",))
        table = _read_csv(path, columns)
        # The published test files of some versions carry no labels: nothing to train or measure with.
        if "label" in table[0] and all(entry["label"] for entry in table):
            tables[split] = table
        elif split != "test":
            raise AnnotationError(f"{path}: a row without a label")
    names = sorted({entry["label"] for entry in tables["train"]})
    ids = {name: number for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {}
    for split, table in tables.items():
        rows[split] = []
        for line, entry in enumerate(table, start=2):
            start, end = (_number(files[split], line, key, entry[key]) for key in ("time_start", "time_end"))
            if entry["label"] not in ids:
                raise AnnotationError(f"{files[split]}, line {line}: label {entry['label']!r} has no training video")
            video = entry["youtube_id"]
            trimmed = f"{video}_{int(start):06d}_{int(end):06d}"
            # The split as the file itself spells it ("val", "validate"): a mirror's folders are named so.
            folders = ("", entry.get("split") or split, split, entry["label"], entry["label"].replace(" ", "_"))
            places = [*dict.fromkeys(folders)] + [
                f"{part}/{label}" for part in dict.fromkeys(folders[1:3]) for label in dict.fromkeys(folders[3:])
            ]
            candidates = [(os.path.join(p, trimmed), True) for p in places] + [
                (os.path.join(p, video), False) for p in places
            ]
            rows[split].append(Row(video, start, end, {"label": ids[entry["label"]]}, split, tuple(candidates)))
    return Annotations(rows, {"label": names})


def _read_epic(facts: catalog.DatasetFacts, folder: Path, files: Mapping[str, Path]) -> Annotations:
    class_names = {}
    for head, name in facts.class_files.items():
        if not (folder / name).is_file():
            raise MissingDataError(missing_message(facts, annotations=folder))
        entries = _read_csv(folder / name, ("id", "key"))
        names = {int(_number(folder / name, line, "id", e["id"])): e["key"] for line, e in enumerate(entries, start=2)}
        if sorted(names) != list(range(len(names))):
            raise AnnotationError(f"{folder / name}: the ids are not 0 to {len(names) - 1}")
        class_names[head] = [names[i] for i in range(len(names))]
    rows: dict[str, list[Row]] = {}
    for split, path in files.items():
        rows[split] = []
        for line, entry in enumerate(_read_csv(path, EPIC_COLUMNS[:14]), start=2):
            labels = {}
            for head, names in class_names.items():
                labels[head] = int(_number(path, line, f"{head}_class", entry[f"{head}_class"]))
                if not 0 <= labels[head] < len(names):
                    raise AnnotationError(
                        f"{path}, line {line}: {head}_class {labels[head]} is outside 0 to {len(names) - 1} "
                        f"(the classes of {facts.class_files[head]})"
                    )
            start, end = (parse_timestamp(path, line, entry[key]) for key in ("start_timestamp", "stop_timestamp"))
            if end <= start:
                raise AnnotationError(
                    f"{path}, line {line}: the segment ends at {end} s, before its start at {start} s"
                )
            person, video = entry["participant_id"], entry["video_id"]
            places = (f"{person}/videos/{video}", f"{person}/{video}", video)
            rows[split].append(Row(video, start, end, labels, split, tuple((place, False) for place in places)))
    return Annotations(rows, class_names)


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise AnnotationError(f"{path}, line {line}: {column} is {text!r}, not a number") from None


def parse_timestamp(path: Path, line: int, text: str) -> float:
    """Seconds of "HH:MM:SS.ss".

    Raises:
      AnnotationError: another form; the message names `path` and `line`.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise AnnotationError(f"{path}, line {line}: {text!r} is not a time HH:MM:SS.ss")
    hours, minutes, seconds = (_number(path, line, "timestamp", part) for part in parts)
    return 3600.0 * hours + 60.0 * minutes + seconds


class VideoFinder:
    """Finds the files of rows under one folder, whose listing is read once.

    Raises:
      MissingDataError: the folder is absent or holds no video at all.
    """

    def __init__(self, facts: catalog.DatasetFacts, folder: str | Path):
        self.folder = Path(folder)
        self._files: dict[str, Path] = {}
        if self.folder.is_dir():
            for root, folders, files in os.walk(self.folder, followlinks=True):
                folders.sort()
                for name in sorted(files):
                    stem, suffix = os.path.splitext(name)
                    if suffix.lower() in VIDEO_SUFFIXES:
                        key = os.path.relpath(os.path.join(root, stem), self.folder)
                        self._files.setdefault(key, Path(root) / name)
        if not self._files:
            raise MissingDataError(missing_message(facts, videos=folder))

    def find(self, row: Row) -> tuple[Path, float | None, float | None] | None:
        """(file, start, end) of a row; start and end are None where the file holds just this stretch. None: absent."""
        for name, trimmed in row.names:
            if name in self._files:
                return self._files[name], None if trimmed else row.start, None if trimmed else row.end
        return None


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def epic_row(video_id: str, seconds: float, num_frames: int, verb: tuple[str, int], noun: tuple[str, int]) -> list[str]:
    """A row of EPIC-Kitchens-100 for one segment that is a whole video; `verb` and `noun` are (name, class id)."""
    # Rounded up to the hundredth that the format has, so that the last frame lies inside.
    hundredths = -int(-seconds * 100 // 1)
    stop = (
        f"{hundredths // 360000:02d}:{hundredths // 6000 % 60:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
    )
    return [
        f"{video_id}_0", video_id.split("_")[0], video_id, "00:00:00.000", "00:00:00.00", stop, "1", str(num_frames),
        f"{verb[0]} {noun[0]}", verb[0], str(verb[1]), noun[0], str(noun[1]), f"['{noun[0]}']", f"[{noun[1]}]",
    ]  # fmt: skip
