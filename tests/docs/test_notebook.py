"""The notebook runs from its first cell to its last, with fewer videos and epochs."""

import json

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits

NOTEBOOK = REPOSITORY / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_notebook_trains_predicts_and_explains(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of the extra [test]")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the extra [test]")
    pytest.importorskip("ipykernel", reason="needs ipykernel, of the extra [test]")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "is kept without outputs"
    build_digits(tmp_path / "work" / "data", 64, 16)
    fields = {"num_epochs": 2.0, "init_from.image_epochs": 4.0, "model.num_layers": 1, "model.hidden_size": 48}
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = f"FOLDER, CLIP, FIELDS = 'work', '', {fields}"
    options = {"timeout": 600, "kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(notebook, **options).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")] == [
        "image/gif", "image/png", "image/gif",
    ]  # fmt: skip
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    with open(tmp_path / "work" / "data" / "moving_digits" / "annotations" / "EPIC_100_validation.csv") as file:
        assert sum(1 for _ in file) == 17
    for expected in ("true labels:", "verb", "noun", "action", "%"):
        assert expected in text
    assert (tmp_path / "work" / "runs" / "digits" / "report.html").exists()
    assert json.loads((tmp_path / "work" / "runs" / "digits" / "evaluation.json").read_text())
