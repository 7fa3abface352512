"""EPIC-Kitchens-100: segments of long videos with a verb and a noun, and class files `id,key,instances`."""

from __future__ import annotations

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage

COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of all splits; raises as `annotations.read`.

    The class files must be those of the benchmark: the later `EPIC_100_noun_classes_v2.csv` (made for VISOR) adds
    classes that no segment has, and a model with its head could not be compared with any published one.
    """
    paths = parsing.split_files(dataset, folder)
    class_names, notes = {}, []
    for head, names in dataset.class_files.items():
        later = parsing.first(folder, (name.replace(".csv", "_v2.csv") for name in names))
        if later and not parsing.first(folder, names):
            raise AnnotationError(
                f"{later}: these are not the {dataset.heads[head]} {head} classes of {dataset.title}; fetch {names[0]} "
                f"from {dataset.source}"
            )
        path = parsing.class_file(dataset, folder, head)
        entries = parsing.table(path, ("id", "key"))
        class_names[head] = parsing.class_list(
            path, [(line, entry["key"], parsing.integer(path, line, "id", entry["id"])) for line, entry in entries]
        )
        notes += parsing.check_class_counts(dataset, {head: class_names[head]}, path)
    rows: dict[str, list[Row]] = {}
    for split, path in paths.items():
        unique = parsing.Unique(path, "narration_id")
        rows[split] = []
        for line, entry in parsing.table(path, COLUMNS[:14]):
            unique.add(line, entry["narration_id"])
            labels = {}
            for head, names in class_names.items():
                labels[head] = parsing.integer(path, line, f"{head}_class", entry[f"{head}_class"])
                if not 0 <= labels[head] < len(names):
                    raise AnnotationError(
                        f"{path}, line {line}: {head}_class {labels[head]} is outside 0 to {len(names) - 1} "
                        f"(the classes of {dataset.class_files[head][0]})"
                    )
            start, end = (parse_timestamp(path, line, entry[key]) for key in ("start_timestamp", "stop_timestamp"))
            if end <= start:
                raise AnnotationError(
                    f"{path}, line {line}: the segment ends at {end} s, before its start at {start} s"
                )
            video = entry["video_id"]
            rows[split].append(Row(video, start, end, labels, split, ((video, False),)))
    return Annotations(rows, class_names, tuple(notes))


def parse_timestamp(path: storage.AnyPath, line: int, text: str) -> float:
    """Seconds of "HH:MM:SS.ss".

    Raises:
      AnnotationError: another form; the message names `path` and `line`.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise AnnotationError(f"{path}, line {line}: {text!r} is not a time HH:MM:SS.ss")
    hours, minutes, seconds = (parsing.number(path, line, "timestamp", part) for part in parts)
    return 3600.0 * hours + 60.0 * minutes + seconds


def segment_row(
    video_id: str, seconds: float, num_frames: int, verb: tuple[str, int], noun: tuple[str, int]
) -> list[str]:
    """A row in this format for one segment that is a whole video; `verb` and `noun` are (name, class id)."""
    # Rounded up to the hundredth that the format has, so that the last frame lies inside.
    hundredths = -int(-seconds * 100 // 1)
    stop = (
        f"{hundredths // 360000:02d}:{hundredths // 6000 % 60:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
    )
    return [
        f"{video_id}_0", video_id.split("_")[0], video_id, "00:00:00.000", "00:00:00.00", stop, "1", str(num_frames),
        f"{verb[0]} {noun[0]}", verb[0], str(verb[1]), noun[0], str(noun[1]), f"['{noun[0]}']", f"[{noun[1]}]",
    ]  # fmt: skip
