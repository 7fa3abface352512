"""Something-Something v2: JSON lists with `id`, `label`, `template`, `placeholders`; the template names the class.

The class of a video is that of its template without the square brackets around the placeholders. The test list has ids
only and is left out.
"""

from __future__ import annotations

from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Rows of both splits; raises as `annotations.read`."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.class_file(dataset, folder, "label")
    table = parsing.json_of(class_path, dict)
    classes = [
        (place, name, parsing.integer(class_path, f"entry {place}", repr(name), number))
        for place, (name, number) in enumerate(table.items(), start=1)
    ]
    names = parsing.class_list(class_path, classes)
    notes = parsing.check_class_counts(dataset, {"label": names}, class_path)
    ids = {name: number for _, name, number in classes}
    rows: dict[str, list[Row]] = {}
    for split, path in paths.items():
        unique = parsing.Unique(path, "id")
        rows[split] = []
        for place, entry in enumerate(parsing.json_of(path, list), start=1):
            video, template = (_value(path, place, entry, key) for key in ("id", "template"))
            unique.add(place, video)
            name = template.replace("[", "").replace("]", "")
            if name not in ids:
                raise AnnotationError(f"{path}, entry {place} (id {video}): {name!r} is not in {class_path.name}")
            rows[split].append(Row(video, None, None, {"label": ids[name]}, split, ((video, True),)))
    return Annotations(rows, {"label": names}, tuple(notes))


def _value(path: storage.AnyPath, place: int, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str | int) or value == "":
        raise AnnotationError(
            f"{path}, entry {place}: no {key} in {entry!r:.100}; a training or validation list has id and template"
        )
    return str(value)
