"""The finished runs of a sweep as a table (Markdown, CSV) and a plot: one row each, mean and spread over the seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
from etils import epath

from vivit_jax.utils import plots

if TYPE_CHECKING:
    from vivit_jax.sweep.plan import Finished

FOLDER = "tables"


def columns(results: Sequence[Finished], metrics: Sequence[str] = ()) -> list[str]:
    """The metrics that a table shows: those asked for; else each `top1`; else all that any run has.

    Raises:
      ValueError: a metric asked for that no finished run has.
    """
    there = list(dict.fromkeys(name for found in results for name in found.metrics))
    if there and (unknown := set(metrics) - set(there)):
        raise ValueError(f"no run has the metrics {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    return list(metrics) or [name for name in there if name.endswith("top1")] or there


def mean_and_spread(results: Sequence[Finished], row: str, metric: str) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation of a metric over a row's seeds; no spread of one; None where none is done."""
    values = [found.metrics[metric] for found in results if found.row == row and metric in found.metrics]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rows_of(results: Sequence[Finished]) -> list[str]:
    """The rows, in the order in which they first came."""
    return list(dict.fromkeys(found.row for found in results))


def markdown(results: Sequence[Finished], metrics: Sequence[str] = ()) -> str:
    """The table: a row's metrics as percentages where they are rates (loss: as it is), mean ± standard deviation."""
    shown = columns(results, metrics)
    head = ["row", *shown, "parameters", "GFLOPs", "runs"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows_of(results):
        runs = [found for found in results if found.row == row]
        done = [found for found in runs if not found.failure]
        cells = [row, *(_cell(mean_and_spread(results, row, name), name) for name in shown)]
        cells += [f"{done[0].parameters:,}", f"{done[0].gflops:.3g}"] if done else ["", ""]
        cells += [str(len(done)) + (f" ({len(runs) - len(done)} failed)" if len(done) < len(runs) else "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: tuple[float, float | None] | None, name: str) -> str:
    if value is None:
        return ""
    mean, spread = value
    scale, digits = (1, 3) if name.endswith("loss") else (100, 1)
    return f"{scale * mean:.{digits}f}" + ("" if spread is None else f" ± {scale * spread:.{digits}f}")


def as_csv(results: Sequence[Finished]) -> str:
    """Every run by itself, with all its metrics, as they were measured."""
    names = sorted({name for found in results for name in found.metrics})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "seed", *names, "parameters", "gflops", "failure"])
    for found in results:
        values = [found.metrics.get(name, "") for name in names]
        writer.writerow([found.row, found.seed, *values, found.parameters, found.gflops, found.failure or ""])
    return file.getvalue()


def write(results: Sequence[Finished], workdir: epath.PathLike, name: str, metrics: Sequence[str] = ()) -> None:
    """Leaves `tables/NAME.md`, `.csv` and `.png` in the sweep's folder; from process 0 alone."""
    if jax.process_index() != 0:
        return
    folder = epath.Path(workdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(results, metrics))
    (folder / f"{name}.csv").write_text(as_csv(results))
    if shown := columns(results, metrics):
        plots.save(_bars(results, shown, name), folder / f"{name}.png")


def _bars(results: Sequence[Finished], metrics: Sequence[str], title: str) -> plots.plt.Figure:
    """A group of bars for each row, a bar for each metric, lines for the standard deviation over the seeds."""
    rows, height = rows_of(results), 0.8 / len(metrics)
    figure, axes = plots.plt.subplots(figsize=(8, 1.2 + 0.22 * len(rows) * (1 + len(metrics))), layout="constrained")
    for place, metric in enumerate(metrics):
        known = [(i, mean_and_spread(results, row, metric)) for i, row in enumerate(rows)]
        known = [(i, *value) for i, value in known if value is not None]
        at, means, spreads = (list(values) for values in zip(*known, strict=True))
        at = [i + (place - (len(metrics) - 1) / 2) * height for i in at]
        axes.barh(at, means, height * 0.9, xerr=[spread or 0.0 for spread in spreads], label=metric, capsize=2)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    axes.set(title=title, xlabel="mean over the seeds, and standard deviation")
    return figure
