"""Figures of a run: confusion matrix, training curves, predictions (matplotlib, without a display).

matplotlib is imported when the first figure is drawn. Every text that is not the program's own passes `readable`.
"""

import collections
import contextlib
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from vivit_jax.utils import storage, terminal

Figure = Any  # matplotlib.figure.Figure
# With more classes, names and numbers would be illegible and are left out.
MOST_NAMED_CLASSES = 40
RECONSTRUCTIONS = "pictures/reconstructions.png"  # in a workdir
_COLOUR, _PALE = "#3b6ea5", "#c3d3e6"
_fonts: list[str] = []  # of the system, which labels so far have needed


@contextlib.contextmanager
def drawing(*shape: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """Yields a `matplotlib.figure.Figure` with these options, and axes as `subplots` returns them; no `shape`: None.

    Neither pyplot nor, afterwards, matplotlib's settings are touched: they are those of the user's own figures.
    """
    import matplotlib.figure

    okabe_ito = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # for the colour-blind
    settings = {"axes.prop_cycle": matplotlib.cycler(color=okabe_ito)}
    settings["text.parse_math"] = False  # names of files and classes may hold any number of $
    with matplotlib.rc_context(settings):
        figure = matplotlib.figure.Figure(**options)
        yield figure, figure.subplots(*shape) if shape else None
        for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfamily")):
            text.set_fontfamily([*matplotlib.rcParams["font.family"], *_fonts])


def readable(text: str, longest: int = 60) -> str:
    """Returns a label or title such that the fonts of this machine can draw it, in a `drawing`.

    Fonts for scripts that matplotlib's own font lacks are looked for among those of the system. A character that none
    has is escaped, as in Python. A text of more than `longest` characters is cut.
    """
    from matplotlib import font_manager

    text, default = terminal.printable(str(text)), font_manager.FontProperties(family=["sans-serif"])
    missing = frozenset(text) - {"\n"} - _characters_in(font_manager.findfont(default))
    while missing and (font := _font_for(missing)):
        _fonts.extend({font.name} - {*_fonts})
        missing -= _characters_in(font.fname)
    text = "".join(ascii(character)[1:-1] if character in missing else character for character in text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


@functools.cache
def _characters_in(file: str) -> frozenset[str]:
    from matplotlib import font_manager

    try:
        characters = map(chr, font_manager.get_font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):  # FreeType cannot read it
        return frozenset()
    return frozenset(character for character in characters if unicodedata.category(character) != "Cc")


@functools.cache
def _font_for(characters: frozenset[str]) -> Any:
    """Returns the upright font of the system that has the most of the characters; None if all have none."""
    from matplotlib import font_manager, get_data_path

    # Not matplotlib's own, which are for mathematics, or draw boxes ("Last Resort").
    fonts = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and "Last Resort" not in font.name and not font.fname.startswith(get_data_path())
    ]
    best = max(fonts, key=lambda font: len(characters & _characters_in(font.fname)), default=None)
    return best if best and characters & _characters_in(best.fname) else None


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Turns any failure to draw or write a picture into a warning: the work that it shows is done, and must count."""
    try:
        yield
    except Exception as error:
        logging.warning("No picture of %s: %s: %s", terminal.printable(what), type(error).__name__, error)


def file_name(stem: str, suffix: str) -> str:
    """Returns a name that a file system takes: without separators, and cut, with a hash, where it is too long."""
    stem = re.sub(r"[/\\\0]", "_", stem)
    if len(os.fsencode(stem)) > 200:
        shortened = os.fsencode(stem)[:190].decode("utf-8", "ignore")
        stem = f"{shortened}_{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    return f"{stem}{suffix}"


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix, int [C, C], whose rows (true classes) are normalised to 1.

    Not by sklearn: that takes a second to import, and loads an OpenMP library beside the threads of a run.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    classes = len(names)
    side = float(np.clip(0.55 * classes, 5, 14))
    with drawing(1, figsize=(side + 1.5, side), layout="constrained") as (figure, axes):
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1))
        for (row, column), share in np.ndenumerate(shares) if classes <= 20 else ():
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
        labels = list(map(readable, names)) if classes <= MOST_NAMED_CLASSES else []
        axes.set_xticks(range(len(labels)), labels, rotation="vertical")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(title=readable(title), xlabel="predicted", ylabel="true")
    return figure


def training_curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Figure:
    """Draws loss, accuracy and learning rate over the steps; `series` are those of `metrics.jsonl`."""
    panels = {"loss": "loss$", "accuracy": "top1$|/accuracy", "learning rate": "^train/learning_rate$"}
    with drawing(1, len(panels), figsize=(15, 4), layout="constrained") as (figure, all_axes):
        for axes, (label, pattern) in zip(all_axes, panels.items(), strict=True):
            for name, points in sorted(series.items()):
                if re.search(pattern, name) and points:
                    steps, values = zip(*points, strict=True)
                    marker = {"marker": "o", "markersize": 3} if name.startswith("eval/") else {"alpha": 0.7}
                    axes.plot(steps, values, label=readable(name), linewidth=1.2, **marker)
            axes.set(xlabel="step", ylabel=label)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize=7)
            if label == "accuracy":
                axes.set_ylim(0, 1.02)
        figure.suptitle(readable(title))
    return figure


def reconstructions(clips: np.ndarray, title: str) -> Figure:
    """Draws original, masked and reconstructed clips of masked pretraining, uint8 [clips, 3, n_t, H, W, C]."""
    shown = np.linspace(0, clips.shape[2] - 1, min(8, clips.shape[2])).astype(int)
    rows = np.concatenate(np.moveaxis(clips[:, :, shown], 2, 0), axis=-2)  # [clips, 3, H, n W, C]
    picture = np.concatenate(rows.reshape(-1, *rows.shape[2:]))
    width = 1.2 * len(shown)  # inches
    with drawing(1, figsize=(width, 0.4 + width * len(picture) / picture.shape[1])) as (figure, axes):
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(readable(title), fontsize=8)
        figure.set_layout_engine("tight", pad=0.3)
    return figure


def to_array(figure: Figure) -> np.ndarray:
    """Returns the pixels of a figure, uint8 [H, W, 3], for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: epath.PathLike, metadata: Mapping[str, str] | None = None) -> epath.Path:
    """Writes a PNG, with `metadata` as its text; returns its path."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110, metadata=dict(metadata or {}))
    return path


def picture_of(file: storage.PathLike, folder: storage.PathLike, kind: str) -> tuple[epath.Path, dict[str, str]]:
    """Returns the path and metadata of `KIND_NAME.png` in a folder, which it creates; with a hash of the file's path
    where that picture is another file's."""
    from PIL import Image

    metadata = {"Source": terminal.printable(str(storage.absolute(file)))}
    stem = f"{kind}_{storage.path(file).stem}"
    path, owner = epath.Path(folder) / file_name(stem, ".png"), None
    with contextlib.suppress(OSError, ValueError, AttributeError), path.open("rb") as picture:
        owner = Image.open(picture).text.get("Source")
    if path.exists() and owner != metadata["Source"]:
        digest = hashlib.sha256(metadata["Source"].encode()).hexdigest()
        path = path.with_name(file_name(f"{stem}_{digest[:8]}", ".png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, metadata


def prediction(
    clip: np.ndarray, relevance: np.ndarray, ranked: Mapping[str, Sequence[tuple[str, float]]], title: str
) -> Figure:
    """Draws a clip as the model saw it, the relevance of its parts, and the top-ranked labels.

    `clip` is uint8 [T, H, W, 3], `relevance` non-negative [n_t, n_h, n_w]; `ranked`: {head: [(label, probability)]}.
    """
    shown = np.linspace(0, len(clip) - 1, min(8, len(clip))).astype(int)
    with drawing(figsize=(1.6 * len(shown), 3.4 + 1.6 * len(ranked)), layout="constrained") as (figure, _):
        rows = figure.add_gridspec(2 + len(ranked), len(shown))
        for column, frame in enumerate(shown):
            images = _frame_and_relevance(figure, (rows[0, column], rows[1, column]), clip, relevance, frame)
            images[0].axes.set_title(f"frame {frame}", fontsize=8)
        for row, (head, labels) in enumerate(ranked.items(), start=2):
            axes = figure.add_subplot(rows[row, :])
            names, probabilities = zip(*reversed(labels), strict=True)
            axes.barh(range(len(names)), probabilities, color=_COLOUR)
            axes.set_yticks(range(len(names)), map(readable, names))
            axes.set(xlim=(0, 1), ylabel=readable(head))
            axes.tick_params(labelsize=8)
        figure.suptitle(readable(title))
    return figure


def _frame_and_relevance(figure: Figure, cells: Any, clip: np.ndarray, relevance: np.ndarray, frame: int) -> list[Any]:
    """Draws a frame in two cells, in the second under its relevance: bilinear between token centres, over the extent of
    the frame. Returns the images: twice the frame, and the relevance."""
    panels = [figure.add_subplot(cell) for cell in cells]
    images = [axes.imshow(clip[frame]) for axes in panels]
    for axes in panels:
        axes.set_axis_off()
    height, width = clip.shape[1:3]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    weights = relevance[frame * len(relevance) // len(clip)]
    colours = {"cmap": "inferno", "alpha": 0.6, "vmin": 0, "vmax": relevance.max() or 1}
    return [*images, axes.imshow(weights, interpolation="bilinear", extent=extent, **colours)]


def explanation(clip: np.ndarray, relevance: np.ndarray, title: str) -> Iterator[np.ndarray]:
    """Yields the frames of a video, uint8 [H, W, 3] with even sides: each frame of a clip beside its relevance, over a
    bar of the relevance of all frames. The arrays are those of `prediction`, of one clip or several in a row."""
    with drawing(figsize=(6.4, 4.4), dpi=100, layout="constrained") as (figure, _):
        rows = figure.add_gridspec(2, 2, height_ratios=(3, 1))
        *images, heat = _frame_and_relevance(figure, (rows[0, 0], rows[0, 1]), clip, relevance, 0)
        axes = figure.add_subplot(rows[1, :])
        frames, times = len(clip), len(relevance)
        shares = relevance.sum((1, 2))
        bars = axes.bar(np.arange(times), shares / (shares.max() or 1), width=0.9, color=_PALE)
        axes.set(xlim=(-0.5, times - 0.5), ylim=(0, 1.05), yticks=[], xlabel="frame", ylabel="relevance")
        marks = np.unique(np.linspace(0, times - 1, min(9, times)).astype(int))
        axes.set_xticks(marks, [str(-(-mark * frames // times)) for mark in marks])
        figure.suptitle(readable(title, 80), fontsize=10)
    for frame in range(frames):
        time = frame * times // frames
        for image in images:
            image.set_data(clip[frame])
        heat.set_data(relevance[time])
        for i, bar in enumerate(bars):
            bar.set_color(_COLOUR if i == time else _PALE)
        yield to_array(figure)
        figure.set_layout_engine("none")  # that of the first frame stays


def timeline(segments: Sequence[Any], title: str) -> Figure:
    """Draws `timeline.Segment`s as bars over time, a row for each label, darker where more probable."""
    seconds = collections.Counter()
    for each in segments:
        seconds[each.label] += each.end - each.start
    rows = {label: row for row, (label, _) in enumerate(seconds.most_common(MOST_NAMED_CLASSES))}
    drawn = [each for each in segments if each.label in rows]
    with drawing(1, figsize=(12, 1.6 + 0.3 * len(rows)), layout="constrained") as (figure, axes):
        lines = [rows[each.label] for each in drawn], [each.start for each in drawn], [each.end for each in drawn]
        axes.hlines(*lines, colors=[(_COLOUR, 0.25 + 0.75 * each.probability) for each in drawn], linewidth=12)
        axes.set_yticks(range(len(rows)), map(readable, rows))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x // 3600:.0f}:{x // 60 % 60:02.0f}:{x % 60:04.1f}")
        axes.set(xlim=(0, segments[-1].end), ylim=(len(rows) - 0.4, -0.6), title=readable(title))
        axes.grid(axis="x", alpha=0.3)
    return figure
