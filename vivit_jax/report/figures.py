"""The report's drawings, as SVG that stands in the page itself and takes its colours from it."""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vivit_jax.report import animations

Points = Sequence[tuple[float, float]]
# Drawn in this colour, which becomes the page's text colour, light or dark.
_TEXT = "#010203"
# Readable on white and on near black.
COLOURS = ("#3b82d6", "#e07b39", "#2fa36b", "#c2528b", "#8a6fd1", "#a98b1e", "#1f9fb0", "#d0555a")
MOST_POINTS = 400
_numbers = itertools.count()


def thinned(points: Points) -> Points:
    """At most 400 points: of more, the means of so many stretches, so that a long run stays a small file."""
    if len(points) <= MOST_POINTS:
        return points
    parts = np.array_split(np.asarray(points, float), MOST_POINTS)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def lines(series: Mapping[str, Points], x: str, title: str, *, shares: bool = False, logarithmic: bool = False) -> str:
    """A panel of lines as SVG, with a legend above where there are several.

    Args:
      series: {name: [(x, y), ...]}, each not empty.
      x: label of its axis.
      title: what is drawn, for those who cannot see it; the page has it above the panel.
      shares: y lies in [0, 1] and is shown in per cent.
      logarithmic: y on a logarithmic scale, where all of it is greater than 0.
    """
    figure = Figure(figsize=(5.2, 2.8 + 0.17 * (len(series) // 2)), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(series.items(), itertools.cycle(COLOURS), strict=False):
        points = thinned(points)
        few = len(points) <= 40
        axes.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.5, marker="o" * few, markersize=3)
    if logarithmic and all(value > 0 for points in series.values() for _, value in points):
        axes.set_yscale("log")
    if shares:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel=x)
    axes.grid(alpha=0.25, color=_TEXT, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False, labelcolor=_TEXT)
    return svg(figure, f"{title} against {x}")


def matrix_picture(matrix: np.ndarray) -> str:
    """A confusion matrix too large for a table, as a data URI of a PNG: the stronger the colour, the larger the share.

    Args:
      matrix: int [C, C], rows the truth.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # Colour by opacity, so that what is empty shows the page; the square root lets rare confusions be seen.
    pixels = np.zeros((*matrix.shape, 4))
    pixels[..., :3] = matplotlib.colors.to_rgb(COLOURS[0])
    pixels[..., 3] = np.sqrt(shares)
    scale = max(1, 512 // len(matrix))
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels.repeat(scale, 0).repeat(scale, 1), format="png")
    return animations.data_uri(file.getvalue(), "image/png")


def svg(figure: Figure, description: str) -> str:
    """A figure as an SVG element for a page: as wide as its place, text as text, in the page's colour.

    Args:
      figure: drawn in `_TEXT` and COLOURS.
      description: for those who cannot see it.
    """
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"report{next(_numbers)}",  # two drawings in one page must not share the names of their parts
        "text.color": _TEXT,
    }
    for axes in figure.axes:
        axes.tick_params(colors=_TEXT, labelsize=8, which="both")
        axes.xaxis.label.set(color=_TEXT, fontsize=9)
        axes.yaxis.label.set(color=_TEXT, fontsize=9)
        for spine in axes.spines.values():
            spine.set_edgecolor(_TEXT)
    file = io.StringIO()
    with matplotlib.rc_context(style):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend)_\d+"', "", text)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text).replace(_TEXT, "currentColor")
