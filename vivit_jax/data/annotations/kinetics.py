"""Kinetics-400, 600, 700: `label,youtube_id,time_start,time_end,split[,is_cc]`.

Labels may be quoted, ids may begin with "-". Class ids are the places of the training file's labels in alphabetical
order, as everywhere in the literature.
"""

from __future__ import annotations

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of the splits that have labels; raises as `annotations.read`.

    A test file without labels is left out. A row that comes twice in a file counts once; both are noted.
    """
    paths = parsing.split_files(dataset, folder)
    tables, notes = {}, []
    for split, path in paths.items():
        # The published test files of some versions carry no labels: nothing to train or measure with.
        table = parsing.table(path, ("youtube_id", "time_start", "time_end") + (() if split == "test" else ("label",)))
        bare = [line for line, entry in table if not entry.get("label")]
        if not bare:
            tables[split] = table
        elif split == "test":
            notes.append(f"{path}: {len(bare)} rows without a label; the test split is left out")
        else:
            raise AnnotationError(f"{path}, line {bare[0]}: a row without a label")
    names = sorted({entry["label"] for _, entry in tables["train"]})
    notes += parsing.check_class_counts(dataset, {"label": names}, paths["train"])
    labels = {name: {"label": number} for number, name in enumerate(names)}  # shared by all rows of a class
    rows = {}
    for split, table in tables.items():
        path, taken = paths[split], {}
        for line, entry in table:
            start, end = (parsing.number(path, line, key, entry[key]) for key in ("time_start", "time_end"))
            label, video = entry["label"], entry["youtube_id"]
            if not video or start < 0:
                raise AnnotationError(f"{path}, line {line}: youtube_id {video!r} from {start:g} s is no video")
            if label not in labels:
                raise AnnotationError(f"{path}, line {line}: label {label!r} has no training video")
            stretch = f"{video}_{int(start):06d}_{int(end):06d}"
            names_of_file = ((stretch, True), (video, False))
            taken.setdefault((stretch, label), Row(video, start, end, labels[label], split, names_of_file))
        rows[split] = list(taken.values())
        if len(taken) < len(table):
            notes.append(f"{path}: {len(table) - len(taken)} rows come twice and count once")
    return Annotations(rows, {"label": names}, tuple(notes))
