"""Files of text, tables and numbers, with errors that name the file, the line, the value and the way out."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.data.annotations.rows import AnnotationError, MissingDataError, missing_message
from vivit_jax.utils import storage


def first(folder: storage.AnyPath, names: Iterable[str]) -> storage.AnyPath | None:
    """The first of `names` that is a file in `folder`."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def split_files(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> dict[str, storage.AnyPath]:
    """split -> its file in `folder`, for the splits that have one.

    Raises:
      MissingDataError: none for training.
    """
    found = {split: first(folder, names) for split, names in dataset.annotation_files.items()}
    if found.get("train") is None:
        wanted = " or ".join(dataset.annotation_files["train"][:2])
        raise MissingDataError(f"no {wanted} in {folder}.\n{missing_message(dataset, annotations=folder)}")
    return {split: path for split, path in found.items() if path is not None}


def class_file(dataset: catalog.DatasetInfo, folder: storage.AnyPath, head: str) -> storage.AnyPath:
    """The file of the class names of `head`.

    Raises:
      MissingDataError: it is not in `folder`.
    """
    path = first(folder, dataset.class_files[head])
    if path is None:
        wanted = " or ".join(dataset.class_files[head])
        raise MissingDataError(f"no {wanted} in {folder}.\n{missing_message(dataset, annotations=folder)}")
    return path


def text(path: storage.AnyPath) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark.

    Raises:
      AnnotationError: empty, or another encoding.
    """
    data = path.read_bytes()
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise AnnotationError(
            f"{path}: byte {error.start} is not UTF-8{' (the file is UTF-16)' if utf16 else ''}; save it as UTF-8"
        ) from None
    if "\0" in content:
        raise AnnotationError(f"{path}: holds NUL characters, so it is UTF-16 or no text; save it as UTF-8")
    if not content.strip():
        raise AnnotationError(f"{path}: empty; fetch it anew")
    return content


def lines(path: storage.AnyPath) -> list[tuple[int, str]]:
    """(line number, line) of all lines that are not blank; raises as `text`."""
    numbered = enumerate(text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def table(path: storage.AnyPath, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> value without blanks around it) of a CSV file with a header; blank lines are left out.

    Raises:
      AnnotationError: empty, no rows, another encoding; a column of `columns` is missing or comes twice, or a row has
        more or fewer values than the header.
    """
    records = list(records_of(path))
    header = [name.strip() for name in records[0][1]]
    found = ", ".join(header)
    missing = [name for name in columns if name not in header]
    if missing:
        hint = "; the separator must be a comma" if len(header) == 1 else ""
        raise AnnotationError(f"{path}: no column {', '.join(missing)}; found {found}{hint}")
    if len(set(header)) != len(header):
        raise AnnotationError(f"{path}: a column comes twice: {found}")
    if len(records) == 1:
        raise AnnotationError(f"{path}: no rows")
    rows = []
    for line, values in records[1:]:
        if len(values) != len(header):
            raise AnnotationError(f"{path}, line {line}: {len(values)} values for {len(header)} columns ({found})")
        rows.append((line, dict(zip(header, map(str.strip, values), strict=True))))
    return rows


def records_of(path: storage.AnyPath) -> Iterable[tuple[int, list[str]]]:
    """(number of its last line, values) of each record of a CSV file that is not blank; raises as `text`."""
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, values
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {reader.line_num}: not CSV ({error}); is a quote not closed?") from None


def json_of(path: storage.AnyPath, kind: type) -> Any:
    """The content of a JSON file, a list or an object as `kind` says.

    Raises:
      AnnotationError: broken or empty JSON, another encoding, or another kind.
    """
    try:
        content = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path}, line {error.lineno}: broken JSON ({error.msg} at column {error.colno}); fetch it anew"
        ) from None
    if not isinstance(content, kind) or not content:
        wanted = {list: "a list", dict: "an object"}[kind]
        raise AnnotationError(f"{path}: holds {type(content).__name__} of {_short(content)}, not {wanted} with entries")
    return content


def number(path: storage.AnyPath, line: int | str, column: str, value: str) -> float:
    """`value` as a finite float; `line` is a line number or words for the place.

    Raises:
      AnnotationError: it is none; the message names file, line and column.
    """
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise AnnotationError(f"{path}, {_place(line)}: {column} is {value!r}, not a number")
    return result


def integer(path: storage.AnyPath, line: int | str, column: str, value: str) -> int:
    """`value` as a whole number; raises as `number`."""
    result = number(path, line, column, value)
    if result != int(result):
        raise AnnotationError(f"{path}, {_place(line)}: {column} is {value!r}, not a whole number")
    return int(result)


def class_list(path: storage.AnyPath, entries: Sequence[tuple[int, str, int]], first_id: int = 0) -> list[str]:
    """Class names in the order of their ids, from (line, name, id).

    Raises:
      AnnotationError: the ids are not `first_id`, `first_id` + 1, ... or a name is empty.
    """
    names = {number: name for _, name, number in entries}
    for line, name, _ in entries:
        if not name:
            raise AnnotationError(f"{path}, line {line}: a class without a name")
    last = first_id + len(entries) - 1
    if sorted(names) != list(range(first_id, last + 1)):
        raise AnnotationError(f"{path}: {len(entries)} classes, but the ids are not {first_id} to {last}, each once")
    return [names[i] for i in range(first_id, last + 1)]


def check_class_counts(
    dataset: catalog.DatasetInfo, class_names: Mapping[str, Sequence[str]], path: storage.AnyPath
) -> list[str]:
    """Notes on heads with fewer classes than published.

    Raises:
      AnnotationError: more classes than published: the files are those of another data set or version.
    """
    notes = []
    for head, names in class_names.items():
        published = dataset.heads.get(head, len(names))
        if len(names) > published:
            raise AnnotationError(
                f"{path}: {len(names)} classes of {head}, {dataset.title} has {published}: this is the file of another "
                f"version or data set; the right one is from {dataset.source}"
            )
        if len(names) < published:
            notes.append(f"{path}: {len(names)} classes of {head}, published are {published}")
    return notes


class Unique:
    """Notices what comes twice in one file."""

    def __init__(self, path: storage.AnyPath, what: str):
        self._path, self._what = path, what
        self._lines: dict[Any, int] = {}

    def add(self, line: int, value: Any) -> None:
        """Raises AnnotationError where `value` was there before, with both lines."""
        before = self._lines.setdefault(value, line)
        if before != line:
            shown = value if isinstance(value, str) else ", ".join(str(v) for v in value if v is not None)
            raise AnnotationError(
                f"{self._path}, line {line}: {self._what} {shown} was in line {before} before; each may come once"
            )


def _place(line: int | str) -> str:
    return f"line {line}" if isinstance(line, int) else line


def _short(content: Any) -> str:
    shown = repr(content)
    return shown if len(shown) <= 60 else shown[:60] + "..."
