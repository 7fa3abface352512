"""Tables as aligned text, Markdown or CSV."""

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Sequence

from vivit_jax.utils import tables

FORMATS = ("text", "markdown", "csv")
WIDTH = 120  # of notes in text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose last column is a remark."""

    name: str  # one word, `table2`; the first column of the CSV
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()  # sentences under the table


def render(shown: Sequence[Table], form: str) -> str:
    """Returns all tables as one text. In CSV, consecutive tables with one header are joined, and notes are omitted."""
    if form not in FORMATS:
        raise ValueError(f"format={form!r} is unknown; choose one of {', '.join(FORMATS)}")
    if form != "csv":
        return "\n\n".join(_page(table, markdown=form == "markdown") for table in shown)
    parts = []
    for header, group in itertools.groupby(shown, key=lambda table: table.header):
        rows = [(table.name, *row) for table in group for row in table.rows]
        rows = [[cell.replace(",", "") if _is_number(cell) else cell for cell in row] for row in rows]
        parts.append(tables.to_csv(("table", *header), rows))
    return "".join(parts).rstrip("\n")


def _page(table: Table, *, markdown: bool) -> str:
    """Renders one table; remarks become numbered notes below it, equal ones once."""
    remarks = list(dict.fromkeys(row[-1] for row in table.rows if row[-1]))
    number = {remark: f"({i})" for i, remark in enumerate(remarks, start=1)}
    rows = [(*row[:-1], number.get(row[-1], "")) for row in table.rows]
    notes = [*(f"{number[remark]} {remark}" for remark in remarks), *table.notes]

    # Columns are padded to one width, numbers to the right.
    widths = [max(3 * markdown, *map(len, column)) for column in zip(table.header, *rows, strict=True)]
    numeric = [all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    header, *rows = (
        [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        for cells in (table.header, *rows)
    )
    if markdown:
        rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
        return "\n\n".join([f"## {table.title}", tables.to_markdown(header, rows, rule), *notes])
    lines = ["  ".join(cells).rstrip() for cells in (header, ["-" * w for w in widths], *rows)]
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="    ") for note in notes]
    return "\n".join([table.title, "", *lines, "", *notes]).rstrip()


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?[\d,.]*", cell) is not None
