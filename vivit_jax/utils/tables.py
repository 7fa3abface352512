"""Tables as Markdown and CSV text."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(columns: Sequence[str], rows: Iterable[Sequence[object]], rule: Sequence[str] | None = None) -> str:
    """Returns a Markdown table; `rule`: cells of the line under the header, as `---:` for numbers, by default `---`."""
    lines = [columns, rule or ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose last column is a remark."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()  # sentences under the table

    def __str__(self) -> str:
        """Returns Markdown with aligned columns; remarks become numbered notes below, equal ones once."""
        remarks = list(dict.fromkeys(row[-1] for row in self.rows if row[-1]))
        number = {remark: f"({i})" for i, remark in enumerate(remarks, start=1)}
        rows = [(*row[:-1], number.get(row[-1], "")) for row in self.rows]
        notes = [*(f"{number[remark]} {remark}" for remark in remarks), *self.notes]
        # Columns are padded to one width, numbers to the right.
        widths = [max(3, *map(len, column)) for column in zip(self.header, *rows, strict=True)]
        numeric = [all(re.fullmatch(r"[+-]?[\d,.]*", cell) for cell in column) for column in zip(*rows, strict=True)]
        header, *rows = (
            [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
            for cells in (self.header, *rows)
        )
        rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
        return "\n\n".join([f"## {self.title}", to_markdown(header, rows, rule), *notes])
