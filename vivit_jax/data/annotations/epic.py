"""EPIC-Kitchens-100: segments of long videos with a verb and a noun, and class files `id,key,instances`."""

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
    """Reads all splits.

    The later `EPIC_100_noun_classes_v2.csv` (made for VISOR) is refused: it adds classes without any segment, and a
    model with its head would not be comparable with published ones.
    """
    paths = parsing.split_files(dataset, folder)
    class_names, notes = {}, []
    for head, names in dataset.class_files.items():
        later = parsing.first(folder, (name.replace(".csv", "_v2.csv") for name in names))
        if later and not parsing.first(folder, names):
            published = f"the {dataset.heads[head]} {head} classes of {dataset.title}"
            raise AnnotationError(f"{later}: these are not {published}; get {names[0]} from {dataset.source}")
        path = parsing.required(dataset, folder, names)
        entries = parsing.table(path, ("id", "key"))
        classes = [(entry["key"], parsing.integer(where, "id", entry["id"])) for where, entry in entries]
        class_names[head], head_notes = parsing.class_names(dataset, path, classes, head)
        notes += head_notes
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        unique = parsing.Unique("narration_id")
        for where, entry in parsing.table(path, COLUMNS[:14]):
            video = entry["video_id"]
            unique.add(where, entry["narration_id"])
            labels = {}
            for head, names in class_names.items():
                labels[head] = parsing.integer(where, f"{head}_class", entry[f"{head}_class"])
                if not 0 <= labels[head] < len(names):
                    known = f"0 to {len(names) - 1} (the classes of {dataset.class_files[head][0]})"
                    raise AnnotationError(f"{where}: {head}_class {labels[head]} is outside {known}")
            start, end = (_seconds(where, entry[key]) for key in ("start_timestamp", "stop_timestamp"))
            if end <= start:
                raise AnnotationError(f"{where}: the segment ends at {end} s, before its start at {start} s")
            rows[split].append(Row(video, start, end, labels, split, ((video, False),)))
    return Annotations(rows, class_names, tuple(notes))


def _seconds(where: str, timestamp: str) -> float:
    """Converts "HH:MM:SS.ss" to seconds."""
    parts = timestamp.split(":")
    if len(parts) != 3:
        raise AnnotationError(f"{where}: {timestamp!r} is not a time HH:MM:SS.ss")
    hours, minutes, seconds = (parsing.number(where, "timestamp", part) for part in parts)
    return 3600.0 * hours + 60.0 * minutes + seconds
