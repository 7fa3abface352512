"""Line plots and confusion matrices of the report, as data URIs."""

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from vivit_jax.utils import plots

Points = Sequence[tuple[float, float]]
MAX_POINTS = 400
_GREY = "#808995"  # legible on the light and on the dark page
_STYLE = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _GREY)
_STYLE |= {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def thin(points: Points) -> Points:
    """Averages more than `MAX_POINTS` points over as many equal stretches, to keep the report of a long run small."""
    if len(points) <= MAX_POINTS:
        return points
    stretches = np.array_split(np.asarray(points, float), MAX_POINTS)
    return [(float(stretch[-1, 0]), float(stretch[:, 1].mean())) for stretch in stretches]


def lines(series: Mapping[str, Points], xlabel: str, *, percent: bool = False, logarithmic: bool = False) -> str:
    """Draws {name: [(x, y), ...]} as an SVG; `percent`: y in [0, 1]; `logarithmic` applies where all y are positive."""
    names = {name: plots.readable(name) for name in series}  # before the context, which would forget the fonts
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.8 + 0.17 * (len(series) // 2)), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel)
        for name, points in series.items():
            marker = "o" if len(points) <= 40 else ""
            axes.plot(*zip(*thin(points), strict=True), label=names[name], linewidth=1.5, marker=marker, markersize=3)
        if logarithmic and all(y > 0 for points in series.values() for _, y in points):
            axes.set_yscale("log")
            # The default labels are formulas.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True)
    return data_uri(file.getvalue(), "image/svg+xml")


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], head: str) -> str:
    """Draws a confusion matrix, int [C, C] with the true classes in rows, as a PNG."""
    figure, file = plots.confusion_matrix(matrix, names, head), io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    plots.close(figure)
    return data_uri(file.getvalue(), "image/png")
