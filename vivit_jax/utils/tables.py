"""Tables as Markdown and CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(columns: Sequence[str], rows: Iterable[Sequence[object]], rule: Sequence[str] | None = None) -> str:
    """Returns a Markdown table, its last line without a newline.

    Args:
      columns: the header.
      rows: cells, as many as the header has.
      rule: cells of the line under the header, such as `---:` for a column of numbers; None: `---` in all of them.
    """
    lines = [columns, rule or ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def from_markdown(text: str) -> list[dict[str, str]]:
    """Returns the rows of the first Markdown table in a text, {column: cell}."""
    lines = iter(line.strip() for line in text.splitlines())
    cells = []
    for line in lines:
        if line.startswith("|"):
            cells.append([cell.strip() for cell in line.strip("|").split("|")])
        elif cells:
            break
    columns, _, *rows = cells
    return [dict(zip(columns, row, strict=True)) for row in rows]
