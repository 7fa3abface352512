"""Tables as Markdown and CSV text."""

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
    """Returns a Markdown table; `rule`: cells of the line under the header, as `---:` for numbers, by default `---`."""
    lines = [columns, rule or ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
