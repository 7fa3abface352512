"""`benchmarks.models` at a small size, without Hugging Face; its fit, and its file of results."""

import json
import sys

import pytest

from benchmarks import models

SIZES = {"name": None, "hidden_size": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 32, "image_size": 32}
SIZES |= {"num_classes": 5}


def test_measures_all_parts(tmp_path, monkeypatch):
    out, picture = tmp_path / "models.json", tmp_path / "tokens.png"
    monkeypatch.setattr(models.Worker, "request", _without_peer(models.Worker.request))
    options = models.parse(
        ["--dtypes=bfloat16", "--models=average pooling", "--repeats=2", f"--out={out}", f"--plot={picture}"]
    )
    options.sizes, options.products, options.frames = SIZES | {"num_frames": 4}, ((32, 16, 16),), (2, 4)
    rows = models.run(options)
    assert rows == json.loads(out.read_text())["rows"]
    assert [(row["part"], row["name"]) for row in rows] == [
        ("product", "xla 32 x 16 x 16"),
        ("forward", "average pooling"),
        ("memory", "average pooling"),
        ("train", "small Model 1"),
        ("tokens", "average pooling"),
    ]
    product, forward, memory, _, tokens = rows
    assert forward["share"] == pytest.approx(forward["gflops"] / product["gflops"])
    assert memory["mib"] > 0
    assert tokens["series"]["tokens"] == [4, 8]
    assert tokens["flops_exponent"] == pytest.approx(1, abs=0.1), "each frame attends to itself"
    assert picture.stat().st_size > 1000


def test_results_of_a_later_call_replace_the_same_rows(tmp_path):
    def row(part, ms):
        return {"part": part, "name": "Model 1", "dtype": "float32", "ms": ms}

    models.write(tmp_path / "x.json", [row("forward", 1.0), row("train", 2.0)], {})
    rows = models.write(tmp_path / "x.json", [row("forward", 3.0)], {})
    assert rows == [row("train", 2.0), row("forward", 3.0)]


def _without_peer(request):
    def answer(worker, do, **fields):
        assert fields.get("side") != "peer"
        return None if do == "peer" else request(worker, do=do, **fields)

    return answer


def test_exponent_is_that_of_the_three_largest_sizes():
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert models.exponent(sizes, [5.0, 3 * 4.0, 3 * 16.0, 3 * 64.0]) == pytest.approx(2)


def test_worker_reports_the_peer_as_missing_without_pytorch(tmp_path):
    worker = models.Worker(sys.executable)
    try:
        assert worker.request(do="peer") == models.peer_versions()
        with pytest.raises(RuntimeError, match="ended with status 1"):
            worker.request(do="make", name="x", side="ours", kind="forward", fields={"typo": 1}, batch=1)
    finally:
        worker.process.kill()
