"""Pictures of a run: confusion matrix, training curves. matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from etils import epath

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

# Above this many classes names and numbers are unreadable: the picture is the matrix alone.
MOST_NAMED_CLASSES = 40


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], title: str) -> plt.Figure:
    """A confusion matrix, rows (the true class) normalised to 1.

    Args:
      matrix: int [C, C], rows the truth.
      names: C class names.
      title: above the picture.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    classes = len(names)
    named = classes <= MOST_NAMED_CLASSES
    side = float(np.clip(0.55 * classes, 5, 14))
    figure, axes = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
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


def training_curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> plt.Figure:
    """Loss, accuracy and learning rate over the steps, training and evaluation together.

    Args:
      series: {name: [(step, value), ...]}, names as in `metrics.jsonl`: `train/loss`, `eval/verb/top1`, ...
      title: above the picture.
    """
    wanted = (
        ("loss", lambda n: n.endswith("loss")),
        ("accuracy", lambda n: n.endswith("top1") or "/accuracy" in n),
        ("learning rate", lambda n: n == "train/learning_rate"),
    )
    figure, panels = plt.subplots(1, len(wanted), figsize=(15, 4), layout="constrained")
    for axes, (label, belongs) in zip(panels, wanted, strict=True):
        for name, points in sorted(series.items()):
            if belongs(name) and points:
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


def to_array(figure: plt.Figure) -> np.ndarray:
    """The figure's pixels, uint8 [H, W, 3], for TensorBoard."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(figure: plt.Figure, path: epath.PathLike) -> epath.Path:
    """Writes a PNG and closes the figure; returns its path."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return path
