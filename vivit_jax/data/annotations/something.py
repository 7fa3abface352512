"""Something-Something v2: JSON lists with `id`, `label`, `template`, `placeholders`.

The class of a video is its template without the square brackets around the placeholders. The test list has only ids and
is left out.
"""

from __future__ import annotations

from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads both splits."""
    paths, class_path = parsing.split_files(dataset, folder), parsing.class_file(dataset, folder)
    classes = [
        (name, parsing.integer(f"{class_path}, entry {position}", repr(name), value))
        for position, (name, value) in enumerate(parsing.json_content(class_path, dict).items(), start=1)
    ]
    names = parsing.class_names(class_path, classes)
    notes = parsing.class_count_notes(dataset, class_path, names)
    ids = {name: number for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        unique = parsing.Unique(path, "id")
        for position, entry in enumerate(parsing.json_content(path, list), start=1):
            where = f"{path}, entry {position}"
            video, template = (_value(where, entry, key) for key in ("id", "template"))
            unique.add(position, video)
            name = template.replace("[", "").replace("]", "")
            if name not in ids:
                raise AnnotationError(f"{where} (id {video}): {name!r} is not in {class_path.name}")
            rows[split].append(Row(video, None, None, {"label": ids[name]}, split, ((video, True),)))
    return Annotations(rows, {"label": names}, tuple(notes))


def _value(where: str, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str | int) or value == "":
        raise AnnotationError(f"{where}: no {key} in {entry!r:.100}; a training or validation list has id and template")
    return str(value)
