"""The results of a sweep as a table (Markdown, CSV) and a plot: a row each, mean and deviation over the seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from vivit_jax.sweep.plan import Result
from vivit_jax.utils import plots, storage, tables


def columns(results: Sequence[Result]) -> list[str]:
    """Returns the metrics to show: every `top1`, else all."""
    available = list(dict.fromkeys(name for result in results for name in result.metrics))
    return [name for name in available if name.endswith("top1")] or available


def mean_and_deviation(results: Sequence[Result], row: str, metric: str) -> tuple[float, float | None] | None:
    """Returns mean and standard deviation (None for one seed) of a metric over a row's seeds; None for no run."""
    values = [result.metrics[metric] for result in results if result.row == row and metric in result.metrics]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_cell(value: tuple[float, float | None] | None, scale: float = 100, digits: int = 1) -> str:
    """Returns 'MEAN ± DEVIATION', by default in percent."""
    return "" if value is None else " ± ".join(f"{scale * x:.{digits}f}" for x in value if x is not None)


def markdown(results: Sequence[Result]) -> str:
    """Returns the table; rates are percentages, losses are unscaled."""
    shown = columns(results)
    rows = []
    for row in dict.fromkeys(result.row for result in results):
        done = [result for result in results if result.row == row and not result.failure]
        failed = sum(result.row == row for result in results) - len(done)
        cells = [row]
        for name in shown:
            scale, digits = (1, 3) if name.endswith("loss") else (100, 1)
            cells.append(format_cell(mean_and_deviation(results, row, name), scale, digits))
        cells += [f"{done[0].parameters:,}", f"{done[0].gflops:.3g}"] if done else ["", ""]
        rows.append([*cells, f"{len(done)} ({failed} failed)" if failed else len(done)])
    return tables.to_markdown(["row", *shown, "parameters", "GFLOPs", "runs"], rows) + "\n"


def to_csv(results: Sequence[Result]) -> str:
    """Returns one line for each run, with all its metrics."""
    names = sorted({name for result in results for name in result.metrics})
    metrics = ([result.metrics.get(name, "") for name in names] for result in results)
    rows = ([r.row, r.seed, *m, r.parameters, r.gflops, r.failure or ""] for r, m in zip(results, metrics, strict=True))
    return tables.to_csv(["row", "seed", *names, "parameters", "gflops", "failure"], rows)


def write(results: Sequence[Result], workdir: epath.PathLike, name: str) -> None:
    """Writes `tables/NAME.md`, `.csv` and `.png` into the sweep's folder."""
    folder = epath.Path(workdir) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(folder / f"{name}.md", markdown(results))
    storage.write(folder / f"{name}.csv", to_csv(results))
    if shown := columns(results):
        with plots.optional(f"the table {name}"):
            plots.save(_bars(results, shown, name), folder / f"{name}.png")


def _bars(results: Sequence[Result], metrics: Sequence[str], title: str) -> Any:
    """Draws a group of bars for each row, a bar for each metric, error bars for the deviation over the seeds."""
    rows, height = list(dict.fromkeys(result.row for result in results)), 0.8 / len(metrics)
    size = (8, 1.2 + 0.22 * len(rows) * (1 + len(metrics)))
    figure, axes = plots.pyplot().subplots(figsize=size, layout="constrained")
    for i, metric in enumerate(metrics):
        values = [(y, mean_and_deviation(results, row, metric)) for y, row in enumerate(rows)]
        bars = [(y + (i - (len(metrics) - 1) / 2) * height, *value) for y, value in values if value is not None]
        positions, means, deviations = zip(*bars, strict=True)
        errors = [x or 0.0 for x in deviations]
        axes.barh(positions, means, height * 0.9, xerr=errors, label=plots.readable(metric), capsize=2)
    axes.set_yticks(range(len(rows)), map(plots.readable, rows))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    axes.set(title=plots.readable(title), xlabel="mean over the seeds, and standard deviation")
    return figure
