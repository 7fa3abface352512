"""Something-Something v2: JSON lists with `id`, `label`, `template`, `placeholders`.

The class of a video is its template without the square brackets around the placeholders. The test list has only ids;
the published answers to it, `test-answers.csv` with lines `id;class`, are the test split.
"""

from collections.abc import Iterator
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError, Annotations, Row
from vivit_jax.utils import storage


def read(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> Annotations:
    """Reads the splits; of the test split the answers."""
    paths = parsing.split_files(dataset, folder)
    class_path = parsing.required(dataset, folder, dataset.class_files["label"])
    entries = parsing.json_entries(class_path, dict)
    classes = [(name, parsing.integer(where, repr(name), class_id)) for where, (name, class_id) in entries]
    names, notes = parsing.class_names(dataset, class_path, classes)
    ids = {name: number for number, name in enumerate(names)}
    rows: dict[str, list[Row]] = {split: [] for split in paths}
    for split, path in paths.items():
        unique = parsing.Unique("id")
        entries = _answers(path) if split == "test" else parsing.json_entries(path, list)
        for where, entry in entries:
            video, template = (_value(where, entry, key) for key in ("id", "template"))
            unique.add(where, video)
            name = template.replace("[", "").replace("]", "")
            if name not in ids:
                raise AnnotationError(f"{where} (id {video}): {name!r} is not in {class_path.name}")
            rows[split].append(Row(video, None, None, {"label": ids[name]}, split, ((video, True),)))
    return Annotations(rows, {"label": names}, tuple(notes))


def _answers(path: storage.AnyPath) -> Iterator[tuple[str, dict[str, str]]]:
    for where, values in parsing.csv_rows(path, ";"):
        if len(values) != 2:
            raise AnnotationError(f"{where}: {len(values)} values; an answer is id;class")
        if values[0] != "id":  # a header
            yield where, {"id": values[0], "template": values[1]}


def _value(where: str, entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str | int) or value == "":
        raise AnnotationError(f"{where}: no {key} in {entry!r:.100}; a training or validation list has id and template")
    return str(value)
