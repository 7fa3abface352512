"""Rows and class names of a data set, and parsers of files whose errors name file, line, value and the way out.

`where` is the file and line of a value for error messages, as in "train.csv, line 3".
"""

import csv
import dataclasses
import io
import json
import logging
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit_jax.data import catalog
from vivit_jax.utils import storage

WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
# Words for splits in file names and columns -> split.
SPLITS = {word: split for split, words in WORDS["splits"].items() for word in words.split()}


class MissingDataError(FileNotFoundError):
    """Data is missing: says in which `folders` (`annotations`, `videos`), what is expected there, how to get it."""

    def __init__(self, problem: str, dataset: catalog.DatasetInfo, **folders: storage.PathLike):
        custom = (kind := dataset.annotation_format) in catalog.CUSTOM_KINDS
        names = (*dataset.annotation_files.values(), *dataset.class_files.values())
        files = ", ".join(dict.fromkeys(" or ".join(alternatives[:2]) for alternatives in names))
        expected = {"annotations": catalog.CUSTOM_KINDS[kind][1] if custom else files, "videos": dataset.video_layout}
        lines = [f"{problem}.", f"{dataset.title}: data is missing."]
        for what, folder in folders.items():
            lines.append(f"  looked for {what} in  {folder}\n    expected there: {expected[what]}")
        if not custom:
            lines.append(f"  get it from  {dataset.source}")
        name = f"{kind} --name={dataset.name}" if custom else dataset.name
        flags = f"--dataset={name} --videos=DIR{'' if kind == 'folder' else ' --annotations=DIR'} --out=DIR"
        super().__init__("\n".join([*lines, f"  then: python -m vivit_jax.data.build {flags}"]))


class AnnotationError(ValueError):
    """An annotation file does not have the columns or values of its format."""


@dataclasses.dataclass(frozen=True, slots=True)  # up to a million rows
class Row:
    """One labelled segment of a video.

    Attributes:
      labels: head -> class id; of a multi-label head a sorted tuple of ids, which may be empty.
      names: (name, is_cut) of possible files, best first: the name without its suffix, with as many parent folders as
        identify it; `is_cut`: the file contains exactly this segment.
    """

    video: str  # name in the annotations (a YouTube id, `P01_101` of EPIC-Kitchens, a path)
    start: float | None  # seconds; None: the start of the video
    end: float | None
    labels: Mapping[str, int | tuple[int, ...]]
    split: str  # "train", "validation" or "test"
    names: tuple[tuple[str, bool], ...] = ()
    file: str | None = None  # where the annotations state it: absolute, or relative to the folder of the videos


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All rows of a data set."""

    rows: Mapping[str, list[Row]]  # of each split, in the order of the file
    class_names: Mapping[str, list[str]]  # head -> name of each class id
    notes: tuple[str, ...] = ()  # differences from the published data that are no errors, for the log
    multi_label: frozenset[str] = frozenset()  # heads


def first(folder: storage.AnyPath, names: Iterable[str]) -> storage.AnyPath | None:
    """Returns the first of `names` that is a file in `folder`, or None.

    Otherwise a file whose name differs in case, `_`, `-` and blanks only, there or in the folders below (two levels).
    """
    there, by_key = set(storage.names(folder)), {}
    for name in names:
        if name in there or ("/" in name and (folder / name).is_file()):
            return folder / name
        by_key.setdefault(_key(name), name)
    for paths in _levels(folder):
        similar = [(key, path) for path in paths if (key := _key(path.name)) in by_key]
        for key, name in by_key.items():
            if len(found := [path for key_there, path in similar if key_there == key]) > 1:
                raise AnnotationError(f"several files for one, {', '.join(map(str, found))}; give the folder of one")
            if found:
                logging.getLogger(__name__).warning("%s: read as %s", found[0], name)
                return found[0]
    return None


def _levels(folder: storage.AnyPath) -> Iterator[list[storage.AnyPath]]:
    """Yields the paths in a folder, then those in its folders, and once more; of a bucket only the first."""
    level = [folder]
    for _ in range(1 if storage.is_remote(folder) else 3):
        level = [path / name for path in level for name in storage.names(path) if name[0] != "."]
        yield level


def _key(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.rpartition("/")[2].lower())


def required(dataset: catalog.DatasetInfo, folder: storage.AnyPath, names: Sequence[str]) -> storage.AnyPath:
    """Returns the first of `names` in `folder`; raises MissingDataError if there is none."""
    path = first(folder, names)
    if path is None:
        raise MissingDataError(f"no {' or '.join(names[:2])} in {folder}", dataset, annotations=folder)
    return path


def split_files(dataset: catalog.DatasetInfo, folder: storage.AnyPath) -> dict[str, storage.AnyPath]:
    """Returns split -> its file; only that of the training split is required."""
    files = {"train": required(dataset, folder, dataset.annotation_files["train"])}
    files |= {split: first(folder, names) for split, names in dataset.annotation_files.items() if split != "train"}
    return {split: path for split, path in files.items() if path is not None}


def text(path: storage.AnyPath) -> str:
    """Returns the text of a UTF-8 file without its byte-order mark; an empty file is an error."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    if "\0" in content:
        raise AnnotationError(f"{path}: contains NUL characters, as UTF-16 does; save it as UTF-8")
    if content[:100].lstrip().lower().startswith(("<!doctype", "<html")):
        raise AnnotationError(f"{path}: a web page; download the file itself")
    if not content.strip():
        raise AnnotationError(f"{path}: empty; download it again")
    return content


def lines(path: storage.AnyPath) -> list[tuple[str, str]]:
    """Returns (where, stripped line) of all lines that are not blank."""
    numbered = enumerate(text(path).splitlines(), start=1)
    return [(f"{path}, line {number}", line.strip()) for number, line in numbered if line.strip()]


def csv_rows(path: storage.AnyPath, separator: str = ",") -> Iterable[tuple[str, list[str]]]:
    """Yields (where, stripped values) of each row of a CSV file that is not blank."""
    reader = csv.reader(io.StringIO(text(path), newline=""), delimiter=separator, strict=True)
    try:
        for row in reader:
            if any(values := [value.strip() for value in row]):
                yield f"{path}, line {reader.line_num}", values
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {reader.line_num}: not CSV ({error}); is a quote not closed?") from None


def table(path: storage.AnyPath, columns: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Returns (where, column -> value) of each row, at least one, of a CSV file with a header that has `columns`."""
    (_, header), *rows = csv_rows(path)
    names_found = ", ".join(header)
    missing = [name for name in columns if name not in header]
    if missing:
        hint = "; a list `path label` is a custom data set, --dataset=csv --name=NAME" if len(header) < 3 else ""
        raise AnnotationError(f"{path}: no column {', '.join(missing)}; found {names_found}{hint}")
    if len(set(header)) != len(header):
        raise AnnotationError(f"{path}: duplicate column in {names_found}")
    if not rows:
        raise AnnotationError(f"{path}: no rows")
    for where, values in rows:
        if len(values) != len(header):
            raise AnnotationError(f"{where}: {len(values)} values for {len(header)} columns ({names_found})")
    return [(where, dict(zip(header, values, strict=True))) for where, values in rows]


def json_entries(path: storage.AnyPath, kind: type | tuple[type, ...]) -> list[tuple[str, Any]]:
    """Returns (where, entry) of each entry, at least one, of a JSON file with a list or a dict, as `kind` says."""
    try:
        content = json.loads(text(path))
    except json.JSONDecodeError as error:
        reason = f"broken JSON ({error.msg} at column {error.colno}); download it again"
        raise AnnotationError(f"{path}, line {error.lineno}: {reason}") from None
    if not isinstance(content, kind) or not content:
        expected = "a list" if kind is list else "an object"
        raise AnnotationError(f"{path}: contains {content!r:.60}, not {expected} with entries")
    entries = content.items() if isinstance(content, dict) else content
    return [(f"{path}, entry {position}", entry) for position, entry in enumerate(entries, start=1)]


def number(where: str, column: str, value: str) -> float:
    """Converts `value` to a finite float."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise AnnotationError(f"{where}: {column} is {value!r}, not a number")
    return result


def integer(where: str, column: str, value: str) -> int:
    """Converts `value`, which may be written as 3.0, to a whole number."""
    result = number(where, column, value)
    if result != int(result):
        raise AnnotationError(f"{where}: {column} is {value!r}, not a whole number")
    return int(result)


def class_names(
    dataset: catalog.DatasetInfo,
    path: storage.AnyPath,
    classes: Sequence[tuple[str, int]],
    head: str = "label",
    first_id: int = 0,
) -> tuple[list[str], list[str]]:
    """Returns the class names in the order of their ids, and the notes of `class_count_notes`.

    `classes` holds (name, id) of each class; the ids must be `first_id`, `first_id` + 1, ...
    """
    name_of_id = {class_id: name for name, class_id in classes}
    if not all(name_of_id.values()):
        raise AnnotationError(f"{path}: a class without a name")
    last = first_id + len(classes) - 1
    if sorted(name_of_id) != list(range(first_id, last + 1)):
        raise AnnotationError(f"{path}: {len(classes)} classes, but the ids are not {first_id} to {last}, each once")
    names = [name_of_id[class_id] for class_id in sorted(name_of_id)]
    return names, class_count_notes(dataset, path, names, head)


def class_count_notes(
    dataset: catalog.DatasetInfo, path: storage.AnyPath, names: Sequence[str], head: str = "label"
) -> list[str]:
    """Returns a note if the head has fewer classes than published; more of them are an error."""
    published = dataset.heads.get(head, len(names))
    if len(names) > published:
        advice = f"the file is of another version or data set; get the right one from {dataset.source}"
        raise AnnotationError(f"{path}: {len(names)} classes of {head}, {dataset.title} has {published}: {advice}")
    return [f"{path}: {len(names)} of the {published} published classes of {head}"] if len(names) < published else []
