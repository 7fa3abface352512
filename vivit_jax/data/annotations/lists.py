"""Lists of videos and labels in the forms in use: CSV files, and lists of SlowFast, MMAction2, VideoMAE and Jester.

The separator (tab, comma, semicolon, |, blanks), the header and the meaning of the columns are detected; `--columns`
states the meaning. A form that is not clear is an error that says what was found.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence

from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.rows import AnnotationError
from vivit_jax.data.annotations.video_files import VIDEO_SUFFIXES
from vivit_jax.utils import storage

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Role -> names of its column in headers, best first; a name of a class comes before its number.
_NAMES = {
    "path": "path video_path clip_path file_path filepath full_path relative_path rel_path video_file video_filename "
    "filename file_name file video clip frame_dir frames_dir folder video_name clip_name video_id clip_id name id",
    "label": "label label_name label_text class class_name classname category action action_name activity target tag "
    "gesture template label_id label_idx label_index class_id class_idx class_index classid action_id",
    "start": "start start_time time_start start_sec start_seconds",
    "end": "end end_time time_end end_sec end_seconds stop",
    "split": "split subset partition",
}
_NAMES = {role: names.split() for role, names in _NAMES.items()}
_KNOWN = frozenset(name for names in _NAMES.values() for name in names)
_CLASS_NAMES = ("label_name", "label_text", "class_name", "classname", "action_name")
_CLASS_IDS = ("label_id", "label_idx", "label_index", "class_id", "class_idx", "class_index", "classid", "action_id")
_LABEL_ALIASES = frozenset(name for name in _NAMES["label"] if name.startswith("label_"))
_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|", " ": "blanks"}
_WHOLE = re.compile(r"-?\d+")
# A path that ends in the suffix of a video, and the rest of the line.
_PATH_AND_REST = re.compile(
    rf"(.+?(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES, reverse=True)))}))\s+(\S.*)", re.IGNORECASE
)

Lines = list[tuple[str, list[str]]]  # (where, values) of each line


class NoLabelsError(AnnotationError):
    """A list of videos without labels."""


@dataclasses.dataclass(frozen=True)
class VideoList:
    """The rows of a list: role or other name of a column -> value.

    Roles are path, label, label_HEAD, class_id (the number of `label`), start, end and split.
    """

    rows: list[tuple[str, dict[str, str]]]
    columns: list[str]
    form: str  # in words, for the log; "" for the documented form


def read(path: storage.AnyPath, columns: Sequence[str] | None = None, label_separator: str | None = None) -> VideoList:
    """Reads a list; `columns` are the roles of its columns in order, others than roles are not used.

    Raises AnnotationError, NoLabelsError.
    """
    lines = parsing.lines(path)
    candidates = [separator for separator in _SEPARATORS if separator != label_separator]
    separator, table = _split(path, lines, candidates, columns)
    (_, first), *rest = table
    has_header = _is_header(first, [values for _, values in rest])
    if has_header is None and columns is None:
        raise AnnotationError(
            f"{path}: is the first line ({', '.join(first)}) a header? Name the columns in order: "
            "--columns=path,label (- for one that is not used)"
        )
    names = list(
        columns
        or (
            _roles(first, [values for _, values in rest])
            if has_header
            else _guess(path, [values for _, values in table])
        )
    )
    if has_header and not rest:
        raise AnnotationError(f"{path}: no rows")
    if len(names) != len(first):
        raise AnnotationError(
            f"{table[0][0]}: {len(first)} values, separated by {_SEPARATORS[separator]}, for the {len(names)} columns "
            f"--columns={','.join(names)}"
        )
    _check_columns(path, names, first)
    for where, values in rest:
        if len(values) != len(names):
            raise AnnotationError(f"{where}: {len(values)} values for {len(names)} columns ({', '.join(first)})")
    body = rest if has_header else table
    usual = has_header and separator == "," and names == first
    header = f"header {', '.join(first)}" if has_header else "no header"
    form = "" if usual else f"{header}; columns {', '.join(names)}, separated by {_SEPARATORS[separator]}"
    return VideoList([(where, dict(zip(names, values, strict=True))) for where, values in body], names, form)


def _check_columns(path: storage.AnyPath, names: Sequence[str], first: Sequence[str]) -> None:
    shown = ", ".join(first)
    way_out = "; name the columns in order with --columns=path,label (- for one that is not used)"
    if any(count > 1 and name not in ("-", "") for name, count in Counter(names).items()):
        raise AnnotationError(f"{path}: duplicate column in {', '.join(names)}")
    if "path" not in names:
        if {"youtube_id", "label"} <= set(first):
            way_out = "; this is the form of Kinetics, --dataset=kinetics400 (or 600, 700)"
        raise AnnotationError(f"{path}: no column path; found {shown}{way_out}")
    if not any(re.match("label(_|$)", name) for name in names):
        raise NoLabelsError(f"{path}: no column label (or label_HEAD for several heads); found {shown}{way_out}")


def _split(
    path: storage.AnyPath, lines: list[tuple[str, str]], candidates: Sequence[str], columns: Sequence[str] | None
) -> tuple[str, Lines]:
    """Returns the separator of a list and the values of each line."""
    first = lines[0][1]
    # A header with names that are known tells.
    for separator in candidates:
        cells = _cells(first, separator)
        names = {_normal(name) for name in cells}
        if _is_header(cells, []) and len(names & _KNOWN) > ("path" not in names) and len(names) > 1:
            if separator != " ":
                return separator, list(parsing.csv_rows(path, separator))
            body = _split_blanks(lines[1:], len(names)) if lines[1:] else []
            return separator, [(lines[0][0], cells), *body]
    tables = {}
    for separator in candidates:
        if separator == " ":
            table = _split_blanks(lines, columns and len(columns))
        elif separator in first:
            try:
                table = list(parsing.csv_rows(path, separator))
            except AnnotationError:  # quotes of another form
                continue
        else:
            continue
        counts = Counter(len(values) for _, values in table)
        if len(counts) == 1 and len(table[0][1]) > 1 and (columns is None or len(columns) == len(table[0][1])):
            return separator, table
        tables[separator] = table, counts
    # Otherwise the separator that splits most lines into the same number of values, and the line that differs.
    separator, (table, counts) = max(
        tables.items(), key=lambda item: max((n for size, n in item[1][1].items() if size > 1), default=0)
    )
    size, number = max(((s, n) for s, n in counts.items() if s > 1), key=lambda item: item[1], default=(0, 0))
    if len(counts) > 1 and min(counts) > 1:
        number = f"{min(counts)} to {max(counts)}"
        raise AnnotationError(
            f"{path}: lines of {number} values, separated by {_SEPARATORS[separator]}; for several labels of a video, "
            "separate these by ; or | and give it with --label_separator"
        )
    if number <= len(table) / 2:
        raise NoLabelsError(
            f"{lines[0][0]}: {first[:100]!r} is no path and label, separated by a blank, comma, tab or semicolon; "
            "put quotes around paths with blanks"
        )
    where, values = next((where, values) for where, values in table if len(values) != size)
    raise AnnotationError(
        f"{where}: {len(values)} values ({', '.join(values)[:100]}), where most lines have {size}, separated by "
        f"{_SEPARATORS[separator]}"
    )


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line.lstrip("#").strip()], delimiter=separator, skipinitialspace=True), [])


def _split_blanks(lines: list[tuple[str, str]], count: int | None) -> Lines:
    """Splits lines at blanks, also where paths without quotes contain blanks; `count`: of the values, if known."""

    def split(function: Callable[[str], list[str] | None]) -> Lines | None:
        values = [function(line) for _, line in lines]
        if None in values or len({len(v) for v in values}) != 1 or (count and len(values[0]) != count):
            return None
        return [(where, v) for (where, _), v in zip(lines, values, strict=True)]

    def by_suffix(line: str) -> list[str] | None:
        if line.startswith(("'", '"')) or not (match := _PATH_AND_REST.fullmatch(line)):
            return None
        words = match[2].split()
        # Words that are no numbers are one label, as "playing guitar".
        return [match[1], *(words if all(map(_WHOLE.fullmatch, words)) or count == len(words) + 1 else [match[2]])]

    def by_numbers(line: str) -> list[str] | None:
        match = re.fullmatch(r"(\S.*?)((?:\s+-?\d+)+)", line)
        numbers = match[2].split() if match else []
        if count and len(numbers) >= count:  # the first ones belong to the path
            return line.rsplit(None, count - 1)
        return [match[1].strip("'\""), *numbers] if match and len(numbers) < 3 else None

    def all_blanks(line: str) -> list[str]:
        return [value for value in _cells(line, " ") if value]

    def few_blanks(line: str) -> list[str] | None:
        values = all_blanks(line)
        return values if len(values) <= (count or 3) else None

    forms = (by_suffix, few_blanks, by_numbers)
    return next(filter(None, map(split, forms)), [(where, all_blanks(line)) for where, line in lines])


def _is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool | None:
    """Returns whether the first line is a header; None if that is not clear."""
    if any(map(_is_path, first)) or any(_WHOLE.fullmatch(value) for value in first):
        return False
    if {_normal(value) for value in first} & _KNOWN:
        return True
    columns = list(zip(*rest, strict=False))
    if any(all(map(_WHOLE.fullmatch, column)) or all(map(_is_path, column)) for column in columns):
        return True
    return False if any(value in column for value, column in zip(first, columns, strict=False)) else None


def _is_path(value: str) -> bool:
    return "/" in value or "\\" in value or value[value.rfind(".") :].lower() in VIDEO_SUFFIXES


def _normal(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip("#\"' ").lower())


def _roles(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the role of each column of a header, or its name where it has none."""
    roles = list(header)
    normal = [_normal(name) for name in header]
    has_heads = any(name.startswith("label_") and name not in _LABEL_ALIASES for name in normal)
    for role, names in _NAMES.items():
        if role in header or (role == "label" and has_heads):
            continue
        if best := next((name for name in names if name in normal), None):
            roles[normal.index(best)] = role
    if "label" not in roles:
        return roles
    # `label` may be the number of the class beside its name, or the name beside `label_id`.
    label = roles.index("label")
    whole = [all(len(row) > i and _WHOLE.fullmatch(row[i]) for row in rows) for i in range(len(roles))]
    named = [i for i, name in enumerate(normal) if name in _CLASS_NAMES and i != label and not whole[i]]
    numbered = [i for i, name in enumerate(normal) if name in _CLASS_IDS and i != label and whole[i]]
    if named and whole[label]:
        roles[label], roles[named[0]] = "class_id", "label"
    elif numbered and not whole[label]:
        roles[numbered[0]] = "class_id"
    return [f"({name})" if name in _LABEL_ALIASES else name for name in roles]


def _guess(path: storage.AnyPath, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the roles of the columns of a list without a header."""
    columns = list(zip(*rows, strict=False))
    whole = [all(map(_WHOLE.fullmatch, column)) for column in columns]
    paths = [all(map(_is_path, column)) for column in columns]
    if len(columns) == 2:
        return ["label", "path"] if paths == [False, True] else ["path", "label"]
    if len(columns) == 3:
        pairs, names, ids = ({*zip(columns[1], columns[2], strict=True)}, {*columns[1]}, {*columns[2]})
        if {value.lower() for value in ids} <= {*SPLITS}:
            return ["path", "label", "split"]
        if whole[1] != whole[2] and len(pairs) == len(names) == len(ids):  # a name and its number
            return ["path", "class_id", "label"] if whole[1] else ["path", "label", "class_id"]
        folders = not any(value[value.rfind(".") :].lower() in VIDEO_SUFFIXES for value in columns[0])
        if whole[1] and whole[2] and folders:  # of MMAction2 and TSN
            return ["path", "num_frames", "label"]
    raise AnnotationError(
        f"{path}: {len(columns)} columns without a header, as {', '.join(rows[0])!r}; name them in order: "
        f"--columns=path,...,label (- for one that is not used)"
    )
