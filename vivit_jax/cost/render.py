"""Tables as aligned text, Markdown or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Sequence

FORMATS = ("text", "markdown", "csv")
WIDTH = 120  # of notes under a table in text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose last column is a remark.

    Attributes:
      name: one word, `table2`; the first column of the CSV.
      title: above the table.
      header: names of the columns, the last `remark`.
      rows: cells as text, as many as the header has.
      notes: sentences under the table, about all of it.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def render(tables: Sequence[Table], form: str) -> str:
    """All tables as one text.

    Args:
      tables: to be shown one after the other. In CSV, tables of one header follow each other without a break, and
        their notes are left out.
      form: of `FORMATS`.

    Raises:
      ValueError: another form.
    """
    if form not in FORMATS:
        raise ValueError(f"format={form!r} is not known; choose one of {', '.join(FORMATS)}")
    if form == "csv":
        return _csv(tables)
    return "\n\n".join(_page(table, markdown=form == "markdown") for table in tables)


def _page(table: Table, *, markdown: bool) -> str:
    """Long remarks as numbered notes under the table, the same remark once."""
    remarks = list(dict.fromkeys(row[-1] for row in table.rows if row[-1]))
    number = {remark: f"({i})" for i, remark in enumerate(remarks, start=1)}
    rows = [(*row[:-1], number.get(row[-1], "")) for row in table.rows]
    notes = [*(f"{number[remark]} {remark}" for remark in remarks), *table.notes]
    lines = [table.header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
    numeric = [i for i in range(len(widths)) if all(_is_number(row[i]) for row in rows)]

    def line(cells: Sequence[str]) -> list[str]:
        return [c.rjust(w) if i in numeric else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]

    if not markdown:
        body = [table.title, "", "  ".join(line(table.header)).rstrip(), "  ".join("-" * width for width in widths)]
        below = [textwrap.fill(note, WIDTH, subsequent_indent="    ") for note in notes]
        return "\n".join([*body, *("  ".join(line(row)).rstrip() for row in rows), "", *below]).rstrip()
    rule = ["-" * (w - 1) + ":" if i in numeric else "-" * w for i, w in enumerate(max(w, 3) for w in widths)]
    body = [f"| {' | '.join(cells)} |" for cells in (line(table.header), rule, *map(line, rows))]
    return "\n".join([f"## {table.title}", "", *body, *(part for note in notes for part in ("", note))])


def _csv(tables: Sequence[Table]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = None
    for table in tables:
        if table.header != header:
            header = table.header
            writer.writerow(("table", *header))
        writer.writerows((table.name, *map(_plain, row)) for row in table.rows)
    return text.getvalue().rstrip("\n")


def _plain(cell: str) -> str:
    """A number without its thousands' commas; anything else as it is."""
    return cell.replace(",", "") if _is_number(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "") or 0)
    except ValueError:
        return False
    return True
