"""Kinetics-400, 600, 700: CSV files with the columns `label,youtube_id,time_start,time_end,split[,is_cc]`.

Labels may be quoted, ids may begin with "-". Class ids number the labels of the training file in alphabetical order, as
everywhere in the literature.
"""

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads the splits that have labels: a test file without labels is left out, duplicate rows count once."""
    paths = parsing.split_files(dataset, folder)
    tables, notes = {}, []
    for split, path in paths.items():
        # The published test files of some versions have no labels.
        table = parsing.table(path, COLUMNS[split == "test" : 4])
        unlabelled = [where for where, entry in table if not entry.get("label")]
        if not unlabelled:
            tables[split] = table
        elif split == "test":
            notes.append(f"{path}: {len(unlabelled)} rows without a label; the test split is left out")
        else:
            raise AnnotationError(f"{unlabelled[0]}: a row without a label")
    names = sorted({entry["label"] for _, entry in tables["train"]})
    notes += parsing.class_count_notes(dataset, paths["train"], names)
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows = {}
    for split, table in tables.items():
        unique_rows = {}
        for where, entry in table:
            label, video = entry["label"], entry["youtube_id"]
            start, end = (parsing.number(where, key, entry[key]) for key in ("time_start", "time_end"))
            if not video or start < 0:
                raise AnnotationError(f"{where}: youtube_id {video!r} from {start:g} s is no video")
            if label not in labels:
                raise AnnotationError(f"{where}: label {label!r} has no training video")
            segment = f"{video}_{int(start):06d}_{int(end):06d}"
            row = Row(video, start, end, labels[label], split, ((segment, True), (video, False)))
            unique_rows.setdefault((segment, label), row)
        rows[split] = list(unique_rows.values())
        if len(unique_rows) < len(table):
            notes.append(f"{paths[split]}: {len(table) - len(unique_rows)} duplicate rows are ignored")
    return Annotations(rows, {"label": names}, tuple(notes))
