"""The report of a synthetic run: it shows what the files of the run contain, in one self-contained page."""

import base64
import html.parser
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.digits import build_digits
from tests.helpers.experiment import experiment
from vivit_jax import report
from vivit_jax.data import build, pipeline
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import predictions, results
from vivit_jax.models import ViViTConfig
from vivit_jax.report import figures, load

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """The text, tags and references of a page; asserts that its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.words, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        self.words += [v for k, v in attributes if k == "alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def write_run(workdir, config, class_names, truth, video_id):
    """Writes the files of a finished run with random predictions, those of video 0 correct and most confident."""
    workdir.mkdir()
    rng = np.random.default_rng(0)
    logits = {head: rng.normal(size=(len(video_id), len(names))) for head, names in class_names.items()}
    for head, values in logits.items():
        values[0] = 9.0 * (np.arange(len(class_names[head])) == truth[head][0])
    batch = {"label": truth, "mask": np.ones(len(video_id)), "index": np.arange(len(video_id))}
    batch = predictions.of_batch({h: v.astype(np.float32) for h, v in logits.items()}, batch)
    batch = {k: {h: {f: np.asarray(x) for f, x in t.items()} for h, t in v.items()} if k == "heads" else np.asarray(v)
             for k, v in batch.items()}  # fmt: skip
    table = predictions.Predictions.from_arrays(predictions.sort_by_index([batch]), video_id, list(class_names))
    confusion = {h: np.zeros((len(n), len(n)), int) for h, n in class_names.items()}
    for head, matrix in confusion.items():
        np.add.at(matrix, (truth[head], logits[head].argmax(-1)), 1)
    top1 = {f"{h}/top1": float(np.mean(table.heads[h].rank == 1)) for h in class_names}
    ablations = {(0,): top1, (0, 1): top1}
    result = results.Result(
        top1, confusion, len(video_id), 0, (2, 1), 0, split_size=len(video_id), predictions=table, by_views=ablations
    )
    results.write_result(workdir, result, workdir / "checkpoints" / "40", "validation", class_names)
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 20, "time": 1000.0, "train/loss": 3.25, "train/learning_rate": 0.5, "eval/verb/top1": 0.875},
        {
            "step": 40,
            "time": 4661.0,
            "train/loss": 1.5,
            "train/learning_rate": 0.25,
            "train/steps_per_second": 3.5,
            "eval/seconds": 2.5,
        },
        {"step": 40, "time": 4665.0, "eval/verb/top1": top1["verb/top1"]},
    ]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return table, confusion, top1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    build_digits(folder / "data", 8, 13)
    split = open_split(build.records_folder("moving_digits", folder / "data"), "validation")
    run = experiment(folder / "data", num_steps=40)
    written = write_run(folder / "run", run.to_dict(), split.class_names, split.labels, split.video_id)
    return run, split, folder / "run", written, report.make(folder / "run").read_text()


def test_page_is_self_contained(finished):
    text = finished[-1]
    parsed = Page(text)
    assert parsed.references
    assert all(reference.startswith(("data:", "#")) for reference in parsed.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "script" not in parsed.tags
    anchors = {reference[1:] for reference in parsed.references if reference.startswith("#")}
    assert all(f'id="{anchor}"' in text for anchor in anchors)


def test_page_shows_the_numbers_of_the_files(finished):
    run, split, _, (table, confusion, top1), text = finished
    shown = Page(text).text
    assert "steps 40 finished" in shown
    assert "1:01:05" in shown  # 3665 s between the first and the last line
    assert f"verb/top1 {top1['verb/top1']:.1%} 87.5% 20" in shown  # last, best, step of the best
    assert "train/steps_per_second, mean 3.5" in shown
    assert "eval/seconds, mean 2.5" in shown
    assert "train/skipped" not in shown
    assert "13 of 13 in validation, 2 × 1 views" in shown
    config = run.model_config(split.heads)
    assert isinstance(config, ViViTConfig)
    parameters = load.read_run(finished[2]).parameters()
    assert f"Parameters: {sum(parameters.values()):,}" in shown
    assert parameters["head_noun"] == config.hidden_size * 10 + 10
    assert "model.hidden_size 24 None" in shown  # changed value beside its default
    for head, matrix in confusion.items():
        rows = re.findall(r"<tr><th>([^<]*)</th>((?:<td class=\"[ a-z]*\"\s+style[^>]*>\d+</td>)+)</tr>", text)
        counts = {name: [int(n) for n in re.findall(r">(\d+)<", cells)] for name, cells in rows}
        for name, row in zip(split.class_names[head], matrix, strict=True):
            assert counts[name] == row.tolist()
    cards = re.findall(r"no\. (\d+) · loss ([\d.]+)", shown)
    losses = table.heads["verb"].loss + table.heads["noun"].loss
    order = np.argsort(losses, kind="stable")
    assert [int(number) for number, _ in cards] == [*order[:6], *order[::-1][:6]]
    assert cards[0][0] == "0"
    assert all(float(loss) == pytest.approx(losses[int(number)], rel=5e-3) for number, loss in cards)


def test_clips_show_the_input_of_the_model(finished):
    run, split, _, _, text = finished
    pictures = re.findall(r'<img src="data:image/(?:webp|gif);base64,([^"]+)" alt="([^"]*)"', text)
    assert len(pictures) == 12
    assert pictures[0][1] == split.video_id[0]
    spec = run.clip_spec(run.model_config(split.heads))
    clip = next(pipeline.eval_batches(split, spec, 1, 1, 1))["video"][0, 0]
    animation = Image.open(io.BytesIO(base64.b64decode(pictures[0][0])))
    assert animation.n_frames == len(clip)
    for number, frame in enumerate(clip):
        animation.seek(number)
        assert np.abs(np.asarray(animation.convert("RGB"), int) - frame).mean() < 12  # lossy


def test_names_are_escaped_and_missing_records_reported(finished, tmp_path):
    run = experiment(tmp_path / "nowhere")
    names = {"verb": ["<b>left</b>", 'say "x" & y', "up"], "noun": [f"thing {i}" for i in range(26)]}
    rng = np.random.default_rng(1)
    truth = {head: rng.integers(0, len(known), 9).astype(np.int32) for head, known in names.items()}
    write_run(tmp_path / "run", run.to_dict(), names, truth, np.array([f"<i>{i}</i>" for i in range(9)]))
    (tmp_path / "run" / "init_report.txt").write_text("kept <script>alert(1)</script>\n")
    text = report.make(tmp_path / "run").read_text()
    parsed = Page(text)
    assert not re.search(r"<b>left|<i>\d", text)
    assert "script" not in parsed.tags
    assert "<b>left</b>" in parsed.text
    assert 'say "x" & y' in parsed.text
    assert "kept <script>alert(1)</script>" in parsed.text
    assert re.search(r"The frames cannot be shown: .*nowhere", parsed.text)
    assert len(re.findall(r"no\. \d", parsed.text)) == 10  # the cards are shown without frames
    assert 'alt="confusion matrix of noun"' in text  # an image instead of a table of 26 classes


def test_report_of_an_interrupted_run(tmp_path):
    lines = [json.dumps({"step": step, "time": time, "train/loss": 2.0}) for step, time in ((2, 5.0), (3, 64.6))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "ti')
    text = report.make(tmp_path).read_text()
    assert "steps 3" in Page(text).text
    assert "time 0:01:00" in Page(text).text  # 59.6 s
    assert not {"classes", "clips", "config"} & set(re.findall(r'<section id="(\w+)"', text))
    (tmp_path / "evaluation.json").write_text('{"weights": "ema", "metrics": {"top1": 0.5}}')
    assert load.read_run(tmp_path).metrics == {"ema/top1": 0.5}, "not with the curve of the parameters"


def test_failed_report_is_a_warning_at_the_end_of_a_run(tmp_path, monkeypatch, caplog):
    with pytest.raises(FileNotFoundError, match="no run in"):
        report.make(tmp_path)
    (tmp_path / "evaluation.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"evaluation\.json is not JSON"):
        report.make(tmp_path)
    warnings = []
    monkeypatch.setattr(report.logging, "warning", lambda text, *values: warnings.append(text % values))
    assert report.write(tmp_path) is None
    assert "evaluation.json is not JSON" in warnings[0]


def test_missing_extra_is_a_warning_at_the_end_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "vivit_jax.report.page", raising=False)
    monkeypatch.delattr(report, "page", raising=False)
    warnings = []
    monkeypatch.setattr(report.logging, "warning", lambda text, *values: warnings.append(text % values))
    assert report.write(tmp_path) is None
    assert re.search(r"jinja2.*retry with python -m vivit_jax.report", warnings[0])
    assert len(warnings) == 1


def test_long_curves_are_averaged_over_stretches():
    points = figures.thin([(step, float(step % 2)) for step in range(8000)])
    assert len(points) == 400
    assert all(value == 0.5 for _, value in points)
    assert points[-1][0] == 7999
