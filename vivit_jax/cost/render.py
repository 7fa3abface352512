"""Tables as Markdown."""

import dataclasses
import re
from collections.abc import Sequence

from vivit_jax.utils import tables


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose last column is a remark."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()  # sentences under the table


def render(shown: Sequence[Table]) -> str:
    """Returns all tables as one text, their columns aligned; remarks become numbered notes below, equal ones once."""
    return "\n\n".join(map(_page, shown))


def _page(table: Table) -> str:
    remarks = list(dict.fromkeys(row[-1] for row in table.rows if row[-1]))
    number = {remark: f"({i})" for i, remark in enumerate(remarks, start=1)}
    rows = [(*row[:-1], number.get(row[-1], "")) for row in table.rows]
    notes = [*(f"{number[remark]} {remark}" for remark in remarks), *table.notes]
    # Columns are padded to one width, numbers to the right.
    widths = [max(3, *map(len, column)) for column in zip(table.header, *rows, strict=True)]
    numeric = [all(re.fullmatch(r"[+-]?[\d,.]*", cell) for cell in column) for column in zip(*rows, strict=True)]
    header, *rows = (
        [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        for cells in (table.header, *rows)
    )
    rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
    return "\n\n".join([f"## {table.title}", tables.to_markdown(header, rows, rule), *notes])
