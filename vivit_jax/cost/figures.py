"""Figures 7 (b) and 8 (b) as pictures: cost only, since accuracy needs data."""

from __future__ import annotations

import matplotlib
from etils import epath

from vivit_jax.cost.counts import forward_count
from vivit_jax.cost.paper import MODELS, TABLE2, TABLE5, TUBELET_LENGTHS
from vivit_jax.models import ViViTConfig
from vivit_jax.models.config import BACKBONES
from vivit_jax.utils import plots

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_MARK = {"marker": "D", "facecolors": "none", "edgecolors": "black", "s": 32, "linewidths": 1.2, "zorder": 5}
_COLOURS = ("#3b6ea5", "#c1553b", "#4c9a5b", "#8a5ea8", "#d39a2d")


def figure7b() -> plt.Figure:
    """GFLOPs of Model 1 by backbone (tubelets 16x2, 32 x 224 x 224), the tables' published values as diamonds."""
    names = list(BACKBONES)
    costs = [forward_count(ViViTConfig.from_name(f"ViViT-{name}/16x2")) / 1e9 for name in names]
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    bars = axes.bar(names, costs, width=0.62, color=_COLOURS[0], label="ours")
    axes.bar_label(bars, [f"{cost:,.1f}" for cost in costs], padding=8, fontsize=9)
    known = {"B": TABLE2["Model 1, spatio-temporal"][0], "L": TABLE5[224]}
    axes.scatter([names.index(name) for name in known], list(known.values()), label="published (Tables 2, 5)", **_MARK)
    axes.set(xlabel="backbone", ylabel="GFLOPs of a clip (multiply-adds)", ylim=(0, 1.1 * max(costs)))
    axes.set_title("Figure 7 (b): Model 1, tubelets 16x2, 32 frames of 224 x 224", fontsize=11)
    _finish(axes, "upper left")
    return figure


def figure8b() -> plt.Figure:
    """GFLOPs of the five models of ViViT-B by tubelet length, Table 2's published values as diamonds."""
    figure, axes = plt.subplots(figsize=(9.6, 4.8), layout="constrained")
    width, labels, published = 0.17, [], []
    for i, ((name, fields), colour) in enumerate(zip(MODELS.items(), _COLOURS, strict=True)):
        configs = [ViViTConfig.from_name(f"ViViT-B/16x{t}", **fields) for t in TUBELET_LENGTHS]
        costs = [forward_count(config) / 1e9 for config in configs]
        places = [group + (i - (len(MODELS) - 1) / 2) * width for group in range(len(configs))]
        bars = axes.bar(places, costs, width=width, color=colour, edgecolor="white", label=name)
        axes.bar_label(bars, [f"{cost:.0f}" for cost in costs], padding=6, fontsize=8)
        labels = [f"16x{config.tubelet_size[0]}, {config.grid[0]} temporal tokens" for config in configs]
        published.append((places[TUBELET_LENGTHS.index(2)], TABLE2[name][0]))
    axes.scatter(*zip(*published, strict=True), label="published (Table 2)", **_MARK)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel="tubelet", ylabel="GFLOPs of a clip (multiply-adds)")
    axes.set_title("Figure 8 (b): ViViT-B, 32 frames of 224 x 224", fontsize=11)
    _finish(axes, "upper right")
    return figure


def save(folder: epath.PathLike) -> list[epath.Path]:
    """Writes figure7b.png and figure8b.png into a folder, which is made where absent; returns their paths."""
    folder = epath.Path(folder)
    return [plots.save(draw(), folder / f"{draw.__name__}.png") for draw in (figure7b, figure8b)]


def _finish(axes: plt.Axes, legend: str) -> None:
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc=legend)
