"""Lists of videos and labels in the forms in use: CSV files, and lists of SlowFast, MMAction2, VideoMAE and Jester.

The separator (tab, comma, semicolon, |, blanks), the header and the meaning of the columns are detected; `--columns`
states the meaning. A form that is not clear is an error that says what was found.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vivit_jax.data.annotations import parsing
from vivit_jax.data.annotations.parsing import AnnotationError
from vivit_jax.data.annotations.video_files import VIDEO_SUFFIXES, without_suffix
from vivit_jax.utils import storage

_NAMES: Mapping[str, str] = parsing.WORDS["columns"]  # role -> names of its column in headers, best first
_KNOWN = frozenset(" ".join(_NAMES.values()).split())
_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "|", " ": "blanks"}
HINT = "name the columns in order with --columns=path,label (- for one that is not used)"
_WHOLE = re.compile(r"-?\d+")
# A path that ends in the suffix of a video, and the rest of the line.
_PATH_AND_REST = re.compile(rf"([^'\"].*?({'|'.join(map(re.escape, VIDEO_SUFFIXES))}))\s+(\S.*)", re.IGNORECASE)

Lines = list[tuple[str, list[str]]]  # (where, values) of each line


def read(
    path: storage.AnyPath, columns: Sequence[str] | None = None, label_separator: str | None = None
) -> tuple[list[tuple[str, dict[str, str]]], list[str], str]:
    """Reads a list; raises AnnotationError.

    `columns`: roles of its columns in order: path, label, label_HEAD, start, end, split, group; others are not used.
    The `label_separator` does not separate fields. Returns (where, role or name of a column -> value) of each row, the
    roles or names, and the form for the log ("": usual).
    """
    separator, table = _split_lines(path, [s for s in _SEPARATORS if s != label_separator], columns and len(columns))
    (_, first), *rest = table
    body = [values for _, values in rest]
    has_header, shown = _is_header(first, body), ", ".join(first)
    if has_header is None and columns is None:
        raise AnnotationError(f"{path}: is the first line ({shown}) a header? If not, {HINT}")
    if has_header and not rest:
        raise AnnotationError(f"{path}: no rows")
    names = list(columns or (_roles(first) if has_header else _guess(path, [first, *body])))
    if len(set(names) - {"", "-"}) < len([name for name in names if name not in ("", "-")]):
        raise AnnotationError(f"{path}: duplicate column in {', '.join(names)}")
    if "path" not in names:
        raise AnnotationError(f"{path}: no column path; found {shown}; {HINT}")
    header = f"header {shown}" if has_header else "no header"
    form = f"{header}; columns {', '.join(names)}, by {_SEPARATORS[separator]}"
    rows = [(where, dict(zip(names, values, strict=True))) for where, values in (rest if has_header else table)]
    return rows, names, "" if has_header and separator == "," and names == first else form


def _split_lines(path: storage.AnyPath, separators: Sequence[str], count: int | None) -> tuple[str, Lines]:
    """Returns the separator of a list and the values of each line, as many in each; `count`: how many, if known."""
    lines = parsing.lines(path)
    lines[0] = lines[0][0], re.sub(r"^#+\s+", "", lines[0][1])  # a comment; `#1.mp4` is a name
    tables: dict[str, tuple[Lines, Counter]] = {}
    for separator in separators:
        if separator != " " and separator not in lines[0][1]:
            continue
        try:
            table = _split_blanks(lines, count) if separator == " " else list(parsing.csv_rows(path, separator))
        except AnnotationError:  # quotes of another form
            continue
        if not table:
            raise AnnotationError(f"{path}: no rows, but {_SEPARATORS[separator]}")
        sizes = Counter(len(values) for _, values in table)
        if len(sizes) == 1 and len(table[0][1]) > 1 and count in (None, len(table[0][1])):
            return separator, table
        tables[separator] = table, sizes
    # The separator that splits most lines into the same number of values.
    separator = max(tables, key=lambda separator: max((n for k, n in tables[separator][1].items() if k > 1), default=0))
    table, sizes = tables[separator]
    if count in (None, 1) and max(sizes) == 1:
        return separator, table
    usual = count or sizes.most_common(1)[0][0]
    where, values = next((where, values) for where, values in table if len(values) != usual)
    found = f"{len(values)} values for {usual} columns ({', '.join(values)[:100]})"
    advice = "put quotes around paths with blanks; several labels need ; or | between them, and --label_separator"
    raise AnnotationError(f"{where}: {found}, separated by {_SEPARATORS[separator]}; {advice}")


def _split_blanks(lines: list[tuple[str, str]], count: int | None) -> Lines:
    """Splits lines at blanks, also where paths without quotes contain blanks."""

    def by_suffix(line: str) -> list[str]:
        if not (match := _PATH_AND_REST.fullmatch(line)):
            return []
        words = match[3].split()
        # Words that are no numbers are one label, as "playing guitar".
        return [match[1], *(words if all(map(_WHOLE.fullmatch, words)) or count == len(words) + 1 else [match[3]])]

    def by_blanks(line: str) -> list[str]:
        return [value for value in next(csv.reader([line], delimiter=" ")) if value] or [line]  # as a lone quote

    def few(line: str) -> list[str]:
        return values if len(values := by_blanks(line)) <= (count or 3) else []

    def by_numbers(line: str) -> list[str]:
        numbers = re.search(r"(\s+-?\d+)*$", line)[0].split()
        numbers = numbers[1 - count :] if count else numbers  # the first ones may belong to the path
        return [line.rsplit(None, len(numbers))[0].strip("'\""), *numbers] if 0 < len(numbers) < 3 or count else []

    def uniform(function: Callable[[str], list[str]], lines: list[tuple[str, str]]) -> Lines:
        table = [(where, function(line)) for where, line in lines]
        sizes = {len(values) for _, values in table}
        return table if len(sizes) == 1 and min(sizes) > 1 and count in (None, *sizes) else []

    for function in (by_suffix, few, by_numbers):
        if table := uniform(function, lines):
            return table
        header = by_blanks(lines[0][1])
        if (table := uniform(function, lines[1:])) and len(header) == len(table[0][1]):
            return [(lines[0][0], header), *table]
    return [(where, by_blanks(line)) for where, line in lines]


def _is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool | None:
    """Returns whether the first line is a header; None if that is not clear."""
    if any(_is_path(value) or _WHOLE.fullmatch(value) for value in first):
        return False
    columns = list(zip(*rest, strict=True))
    all_of_a_kind = any(all(map(kind, column)) for column in columns for kind in (_WHOLE.fullmatch, _is_path))
    if all_of_a_kind or {_normal(value) for value in first} & _KNOWN:
        return True
    return False if any(value in column for value, column in zip(first, columns, strict=False)) else None


def _is_path(value: str) -> bool:
    return "/" in value or "\\" in value or without_suffix(value) != value


def _normal(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip("#\"' ").lower())


def _roles(header: Sequence[str]) -> list[str]:
    """Returns the role of each column of a header, or its name where it has none."""
    roles, normal = list(header), [_normal(name) for name in header]
    has_heads = any(name.startswith("label_") and name not in _KNOWN for name in normal)
    for role, names in _NAMES.items():
        best = next((name for name in names.split() if name in normal), None)
        if best and not (role == "label" and has_heads):
            roles = [f"({name})" if name == role != best else name for name in roles]
            roles[normal.index(best)] = role
    # `label_id` beside `label` is its number, not another head.
    return [f"({name})" if name in _KNOWN and name.startswith("label_") else name for name in roles]


def _guess(path: storage.AnyPath, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the roles of the columns of a list without a header."""
    columns = list(zip(*rows, strict=True))
    whole = [all(map(_WHOLE.fullmatch, column)) for column in columns]
    if len(columns) == 1:
        return ["path"]
    if len(columns) == 2:
        swapped = [all(map(_is_path, column)) for column in columns] == [False, True]
        return ["label", "path"] if swapped else ["path", "label"]
    if len(columns) == 3:
        if {value.lower() for value in columns[2]} <= parsing.SPLITS.keys():
            return ["path", "label", "split"]
        one_to_one = len({*columns[1]}) == len({*columns[2]}) == len({*zip(*columns[1:], strict=True)})
        if whole[1] != whole[2] and one_to_one:  # a name and its number
            return ["path", "-", "label"] if whole[1] else ["path", "label", "-"]
        if whole[1] and whole[2] and columns[0] == tuple(map(without_suffix, columns[0])):  # MMAction2's frames
            return ["path", "num_frames", "label"]
    raise AnnotationError(f"{path}: {len(columns)} columns without a header ({', '.join(rows[0])}); {HINT}")
