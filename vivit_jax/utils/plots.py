"""Figures of a run: confusion matrix, training curves, predictions (matplotlib, without a display).

matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more classes, names and numbers would be illegible and are left out.
MOST_NAMED_CLASSES = 40


@functools.cache
def pyplot() -> Any:
    """Returns `matplotlib.pyplot`, which draws into files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix, int [C, C], whose rows (true classes) are normalised to 1."""
    from sklearn.metrics import ConfusionMatrixDisplay

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    classes = len(names)
    named = classes <= MOST_NAMED_CLASSES
    side = float(np.clip(0.55 * classes, 5, 14))
    figure, axes = pyplot().subplots(figsize=(side + 1.5, side), layout="constrained")
    ConfusionMatrixDisplay(shares, display_labels=list(names) if named else None).plot(
        ax=axes,
        cmap="Blues",
        values_format=".2f",
        include_values=classes <= 20,
        xticks_rotation="vertical",
        im_kw={"vmin": 0, "vmax": 1},
    )
    if not named:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set(title=title, xlabel="predicted", ylabel="true")
    return figure


def training_curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Figure:
    """Draws loss, accuracy and learning rate over the steps; `series` are those of `metrics.jsonl`."""
    panels = {"loss": "loss$", "accuracy": "top1$|/accuracy", "learning rate": "^train/learning_rate$"}
    figure, all_axes = pyplot().subplots(1, len(panels), figsize=(15, 4), layout="constrained")
    for axes, (label, pattern) in zip(all_axes, panels.items(), strict=True):
        for name, points in sorted(series.items()):
            if re.search(pattern, name) and points:
                steps, values = zip(*points, strict=True)
                marker = {"marker": "o", "markersize": 3} if name.startswith("eval/") else {"alpha": 0.7}
                axes.plot(steps, values, label=name, linewidth=1.2, **marker)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
        if label == "accuracy":
            axes.set_ylim(0, 1.02)
    figure.suptitle(title)
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """Returns the pixels of a figure, uint8 [H, W, 3], for TensorBoard."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def close(figure: Figure) -> None:
    """Frees the memory of a figure."""
    pyplot().close(figure)


def save(figure: Figure, path: epath.PathLike) -> epath.Path:
    """Writes a PNG and closes the figure; returns its path."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot().close(figure)
    return path


def prediction(
    clip: np.ndarray, attention: np.ndarray, ranked: Mapping[str, Sequence[tuple[str, float]]], title: str
) -> Figure:
    """Draws a clip as the model saw it, the attention of its last layer, and the top-ranked labels.

    `clip` is uint8 [T, H, W, 3], `attention` non-negative [n_t, n_h, n_w]; `ranked`: {head: [(label, probability)]}.
    """
    shown = np.linspace(0, len(clip) - 1, min(8, len(clip))).astype(int)
    height, width = clip.shape[1:3]
    figure = pyplot().figure(figsize=(1.6 * len(shown), 3.4 + 1.6 * len(ranked)), layout="constrained")
    rows = figure.add_gridspec(2 + len(ranked), len(shown))
    strongest = attention.max()
    for column, frame in enumerate(shown):
        weights = attention[frame * len(attention) // len(clip)] / strongest
        for row in (0, 1):
            axes = figure.add_subplot(rows[row, column])
            axes.imshow(clip[frame])
            axes.set_axis_off()
            if row == 0:
                axes.set_title(f"frame {frame}", fontsize=8)
            else:  # bilinear between token centres, over the extent of the frame
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                colours = {"cmap": "inferno", "alpha": 0.6, "vmin": 0, "vmax": 1}
                axes.imshow(weights, interpolation="bilinear", extent=extent, **colours)
    for row, (head, labels) in enumerate(ranked.items(), start=2):
        axes = figure.add_subplot(rows[row, :])
        names, probabilities = zip(*reversed(labels), strict=True)
        axes.barh(names, probabilities, color="#3b6ea5")
        axes.set(xlim=(0, 1), ylabel=head)
        axes.tick_params(labelsize=8)
    figure.suptitle(title)
    return figure
