"""Labels of any script, formulas that are none, and pictures that fail."""

import warnings

import matplotlib
import numpy as np
import pytest

from vivit_jax.predict.timeline import Segment
from vivit_jax.utils import plots

LABELS = [r"a$\frac{$b", "$x$", "打篮球", "कूद", "점프", "Привет", "x" * 500, "a\tb", "\udcff.mp4", "\U0001f9ff"]


@pytest.fixture(autouse=True)
def _missing_glyphs_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_labels_of_any_script_are_drawn_without_boxes_and_formulas(tmp_path):
    figures = [
        plots.confusion_matrix(np.eye(len(LABELS), dtype=int), LABELS, LABELS[0]),
        plots.training_curves({f"eval/{label}/top1": [(1, 0.5)] for label in LABELS}, LABELS[1]),
        plots.prediction(
            np.zeros((4, 8, 8, 3), np.uint8), np.ones((2, 2, 2)), {"$": [(label, 0.1) for label in LABELS]}, LABELS[2]
        ),
        plots.timeline([Segment(i, i + 1, label, 0.5, []) for i, label in enumerate(LABELS)], LABELS[2]),
    ]
    for number, figure in enumerate(figures):
        assert plots.save(figure, tmp_path / f"{number}.png").stat().length > 1000


def test_the_settings_of_matplotlib_stay_those_of_the_user(monkeypatch):
    """The fonts that labels need are set in the figure alone, for all of its texts."""
    before = dict(matplotlib.rcParams)
    plots.confusion_matrix(np.eye(2, dtype=int), LABELS[:2], LABELS[2])
    np.concatenate(list(plots.explanation(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 2, 2)), LABELS[1])))
    assert dict(matplotlib.rcParams) == before
    monkeypatch.setattr(plots, "_fonts", ["Noto Sans SC"])
    figure = plots.confusion_matrix(np.eye(2, dtype=int), LABELS[:2], LABELS[2])
    assert all(text.get_fontfamily()[-1] == "Noto Sans SC" for text in figure.findobj(matplotlib.text.Text))


def test_pictures_of_two_files_have_two_names(tmp_path):
    for name in ("a/\udcff.mp4", "b/\udcff.mp4", "b/\udcff.webm"):
        path, metadata = plots.picture_of(name, tmp_path, "kind")
        assert not path.exists(), "the picture of another file"
        with plots.drawing() as (figure, _):
            plots.save(figure, path, metadata)
        assert plots.picture_of(name, tmp_path, "kind") == (path, metadata)


def test_what_no_font_can_draw_is_escaped(monkeypatch):
    monkeypatch.setattr(plots, "_font_for", lambda characters: None)
    assert [plots.readable(text) for text in ("कूद", "打", "🥕", "a\tb", "\udcff", "é")] == [
        *(r"\u0915\u0942\u0926", r"\u6253", r"\U0001f955", r"a\tb", r"\xff", "é"),
    ]


def test_failed_picture_is_a_warning(caplog):
    with plots.optional("a confusion matrix"):
        raise RuntimeError("no font")
    assert "No picture of a confusion matrix: RuntimeError: no font" in caplog.text


def test_file_names_are_those_of_any_file_system():
    assert plots.file_name("confusion_a/b", ".png") == "confusion_a_b.png"
    names = {plots.file_name("日" * 80 + end, ".png") for end in "ab"}
    assert len(names) == 2
    assert max(len(name.encode()) for name in names) <= 255
