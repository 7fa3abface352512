"""benchmarks/evaluation.py at small sizes."""

import json

from benchmarks import evaluation
from tests.helpers.small_models import small_config


def test_benchmark_of_evaluation_compares_every_batch_with_the_forward_pass(monkeypatch, tmp_path, capsys):
    fields = ("hidden_size", "num_layers", "num_heads", "mlp_dim", "num_frames", "image_size", "tubelet_size")
    monkeypatch.setattr(evaluation, "SMALL", {name: getattr(small_config(), name) for name in fields})
    path = tmp_path / "results.json"
    options = ["--attention=spatiotemporal", "--dtype=float32", "--views=4", "--batch=2", "--repeats=1"]
    evaluation.main([*options, "--videos", "2", "1", "--clips", "1", "3", f"--json={path}"])
    rows = json.loads(path.read_text())["rows"]
    assert [row["program"] for row in rows] == [
        "forward, 2 clips",
        *(f"{videos} x 4 views, {clips} clips at once" for videos in (2, 1) for clips in (1, 3)),
    ]
    assert rows[0]["of_forward"] == 1
    assert all(row["clips_per_second"] > 0 for row in rows)
    assert "1 x 4 views, 3 clips at once" in capsys.readouterr().out
