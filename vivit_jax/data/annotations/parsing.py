"""Parsers of text, CSV and JSON files, whose errors name the file, the line, the value and the way out.

`where` in the arguments is the file and line of a value, as in "train.csv, line 3".
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations.rows import AnnotationError, MissingDataError, missing_message
from vivit_jax.utils import storage


def first(folder: storage.AnyPath, names: Iterable[str]) -> storage.AnyPath | None:
    """Returns the first of `names` that is a file in `folder`, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _required(dataset: catalog.DatasetInfo, folder: storage.AnyPath, names: Sequence[str]) -> storage.AnyPath:
    """Returns the first of `names` in `folder`; raises MissingDataError if there is none."""
    path = first(folder, names)
    if path is None:
        expected = " or ".join(names[:2])
        raise MissingDataError(f"no {expected} in {folder}.\n{missing_message(dataset, annotations=folder)}")
    return path


def split_files(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> dict[str, storage.AnyPath]:
    """Returns split -> its file; only that of the training split is required."""
    files = {split: first(folder, names) for split, names in dataset.annotation_files.items()}
    files["train"] = _required(dataset, folder, dataset.annotation_files["train"])
    return {split: path for split, path in files.items() if path is not None}


def class_file(dataset: catalog.DatasetInfo, folder: storage.AnyPath, head: str = "label") -> storage.AnyPath:
    """Returns the file of the class names of `head`; raises MissingDataError if there is none."""
    return _required(dataset, folder, dataset.class_files[head])


def text(path: storage.AnyPath) -> str:
    """Returns the text of a UTF-8 file without its byte-order mark; raises AnnotationError if it has none."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    if "\0" in content:
        raise AnnotationError(f"{path}: contains NUL characters, as UTF-16 does; save it as UTF-8")
    if not content.strip():
        raise AnnotationError(f"{path}: empty; download it again")
    return content


def lines(path: storage.AnyPath) -> list[tuple[int, str]]:
    """Returns (line number, stripped line) of all lines that are not blank."""
    numbered = enumerate(text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def csv_rows(path: storage.AnyPath) -> Iterable[tuple[int, list[str]]]:
    """Yields (number of the last line, values) of each row of a CSV file that is not blank."""
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, values
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {reader.line_num}: not CSV ({error}); is a quote not closed?") from None


def table(path: storage.AnyPath, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Returns (line number, column -> stripped value) of each row of a CSV file with a header.

    Raises:
      AnnotationError: no rows, one of `columns` is missing, a duplicate column, a row of another length.
    """
    (_, names), *rows = csv_rows(path)
    header = [name.strip() for name in names]
    names_found = ", ".join(header)
    missing = [name for name in columns if name not in header]
    if missing:
        hint = "; the separator must be a comma" if len(header) == 1 else ""
        raise AnnotationError(f"{path}: no column {', '.join(missing)}; found {names_found}{hint}")
    if len(set(header)) != len(header):
        raise AnnotationError(f"{path}: duplicate column in {names_found}")
    if not rows:
        raise AnnotationError(f"{path}: no rows")
    for line, values in rows:
        if len(values) != len(header):
            raise AnnotationError(
                f"{path}, line {line}: {len(values)} values for {len(header)} columns ({names_found})"
            )
    return [(line, dict(zip(header, map(str.strip, values), strict=True))) for line, values in rows]


def json_content(path: storage.AnyPath, kind: type) -> Any:
    """Returns the content of a JSON file; raises AnnotationError unless it is a non-empty `kind` (list or dict)."""
    try:
        content = json.loads(text(path))
    except json.JSONDecodeError as error:
        reason = f"broken JSON ({error.msg} at column {error.colno}); download it again"
        raise AnnotationError(f"{path}, line {error.lineno}: {reason}") from None
    if not isinstance(content, kind) or not content:
        expected = "a list" if kind is list else "an object"
        raise AnnotationError(f"{path}: contains {content!r:.60}, not {expected} with entries")
    return content


def number(where: str, column: str, value: str) -> float:
    """Returns `value` as a finite float; raises AnnotationError if it is none."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise AnnotationError(f"{where}: {column} is {value!r}, not a number")
    return result


def integer(where: str, column: str, value: str) -> int:
    """Returns `value` as a whole number; raises AnnotationError if it is none."""
    result = number(where, column, value)
    if result != int(result):
        raise AnnotationError(f"{where}: {column} is {value!r}, not a whole number")
    return int(result)


def class_names(path: storage.AnyPath, entries: Sequence[tuple[str, int]], first_id: int = 0) -> list[str]:
    """Returns class names in the order of their ids, from (name, id) of each class.

    Raises:
      AnnotationError: the ids are not `first_id`, `first_id` + 1, ... or a name is empty.
    """
    names = {number: name for name, number in entries}
    if not all(names.values()):
        raise AnnotationError(f"{path}: a class without a name")
    last = first_id + len(entries) - 1
    if sorted(names) != list(range(first_id, last + 1)):
        raise AnnotationError(f"{path}: {len(entries)} classes, but the ids are not {first_id} to {last}, each once")
    return [names[number] for number in sorted(names)]


def class_count_notes(
    dataset: catalog.DatasetInfo, path: storage.AnyPath, names: Sequence[str], head: str = "label"
) -> list[str]:
    """Returns a note if the head has fewer classes than published.

    Raises:
      AnnotationError: more classes than published, so the file is that of another data set or version.
    """
    published = dataset.heads.get(head, len(names))
    if len(names) > published:
        raise AnnotationError(
            f"{path}: {len(names)} classes of {head}, {dataset.title} has {published}: the file is of another version "
            f"or data set; get the right one from {dataset.source}"
        )
    return [f"{path}: {len(names)} of the {published} published classes of {head}"] if len(names) < published else []


class Unique:
    """Raises AnnotationError where a value occurs twice in a file."""

    def __init__(self, path: storage.AnyPath, what: str):
        self._path, self._what = path, what
        self._lines: dict[Any, int] = {}

    def add(self, line: int, value: Any) -> None:
        before = self._lines.setdefault(value, line)
        if before != line:
            shown = value if isinstance(value, str) else ", ".join(str(v) for v in value if v is not None)
            raise AnnotationError(f"{self._path}, line {line}: {self._what} {shown} is already in line {before}")
