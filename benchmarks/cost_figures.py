"""Draws the operations of Figures 7 (b) and 8 (b) of the paper for docs/cost.md, by the tables of `vivit_jax.cost`.

python -m benchmarks.cost_figures docs
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from vivit_jax.cost.paper import MODELS, TUBELET_LENGTHS, Row, figure7_rows, figure8_rows
from vivit_jax.models.config import BACKBONES
from vivit_jax.utils import plots


def figure7b() -> Any:
    """Draws GFLOPs of Model 1 by backbone; published values are diamonds."""
    rows = [row for row in figure7_rows() if row.quantity == "GFLOPs"]
    title = "Figure 7 (b): Model 1, tubelets 16x2, 32 frames of 224 x 224"
    return _bars({"ours": rows}, list(BACKBONES), title, xlabel="backbone")


def figure8b() -> Any:
    """Draws GFLOPs of the five models of ViT-B by tubelet length; published values are diamonds."""
    rows = list(figure8_rows())
    by_model = {name: [row for row in rows if row.model.startswith(name)] for name in MODELS}
    labels = [f"16x{t}, {32 // t} temporal tokens" for t in TUBELET_LENGTHS]
    return _bars(by_model, labels, "Figure 8 (b): ViViT-B, 32 frames of 224 x 224", xlabel="tubelet")


def save_figures(folder: epath.PathLike) -> list[epath.Path]:
    """Writes figure7b.png and figure8b.png into a folder, creates it if absent, and returns their paths."""
    folder = epath.Path(folder)
    return [plots.save(draw(), folder / f"{draw.__name__}.png") for draw in (figure7b, figure8b)]


def _bars(series: dict[str, Sequence[Row]], labels: Sequence[str], title: str, xlabel: str) -> Any:
    """Draws a group of bars for each label, with one bar of each series."""
    size = 9.6 if len(series) > 1 else 6.4, 4.6
    with plots.drawing(1, figsize=size, layout="constrained") as (figure, axes):
        width = 0.85 / len(series)
        for i, (name, rows) in enumerate(series.items()):
            positions = np.arange(len(rows)) + (i - (len(series) - 1) / 2) * width
            bars = axes.bar(positions, [row.ours for row in rows], width=0.9 * width, label=name)
            axes.bar_label(bars, [f"{row.ours:,.0f}" for row in rows], padding=7, fontsize=8)
            placed = zip(positions, rows, strict=True)
            published = [(x, row.published) for x, row in placed if row.published is not None]
            label = None if i else "published (Tables 2, 5)"
            axes.scatter(*zip(*published, strict=True), marker="D", c="k", label=label)
        axes.set_xticks(range(len(labels)), labels)
        axes.margins(y=0.1)
        axes.set(xlabel=xlabel, ylabel="GFLOPs of a clip (multiply-adds)", title=title)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder for figure7b.png and figure8b.png")
    print(*save_figures(parser.parse_args().folder), sep="\n")
