"""A run directory written by version 0.1.0 (tests/fixtures/run_0_1_0) resumes, is evaluated and predicts."""

import json
import shutil

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits
from vivit_jax import checkpoint, predict, train
from vivit_jax.config.experiment import Experiment
from vivit_jax.evaluation import evaluate
from vivit_jax.utils import logs

OLD_RUN = REPOSITORY / "tests" / "fixtures" / "run_0_1_0"  # of 4 steps; holds the checkpoint of step 2


@pytest.fixture(scope="module")
def old_data_dir(tmp_path_factory):
    """Data with the classes that the old run was trained on; its videos are of another version of the generator."""
    folder = tmp_path_factory.mktemp("data")
    records = build_digits(folder, 64, 16)
    (records / "class_names.json").write_text(json.dumps(checkpoint.latest_metadata(OLD_RUN)["class_names"]))
    return folder


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(OLD_RUN, tmp_path / "run")


def old_config(data_dir):
    config = json.loads((OLD_RUN / "config.json").read_text())
    config["data"]["dir"] = str(data_dir)
    return Experiment.from_config(config)


@pytest.mark.slow
@pytest.mark.long
def test_old_run_resumes_with_guard_and_ema(workdir, old_data_dir, caplog):
    metadata = checkpoint.latest_metadata(workdir)
    assert "guard/in_a_row" in metadata["checksums"], "the fixture has the old names"
    run = old_config(old_data_dir)
    with caplog.at_level("WARNING"):
        metrics = train.train(run, workdir)
    # Nothing was missing in the checkpoint, and apart from the folder neither config nor data differ.
    for text in ("initialised from its parameters", "data or their order changed", "damaged"):
        assert text not in caplog.text
    assert f"differs from that of the checkpoint: data.dir: data -> {old_data_dir}\n" in caplog.text
    # On one device, by the last code that was compared with version 0.1.0, on whose data both gave the same numbers.
    series = logs.read_metrics(workdir / logs.METRICS_FILE)
    assert series["train/loss"] == [(3, pytest.approx(4.372426, rel=1e-5)), (4, pytest.approx(4.371665, rel=1e-5))]
    assert metrics["verb/loss"] == pytest.approx(2.079876, rel=1e-5)
    assert metrics["ema/verb/loss"] == pytest.approx(2.079893, rel=1e-5)
    assert "guard/consecutive_skips" in checkpoint.latest_metadata(workdir)["checksums"]


@pytest.mark.slow
def test_old_checkpoint_is_evaluated_and_predicts(workdir, old_data_dir):
    for weights in ("params", "ema"):
        result = evaluate.evaluate(old_config(old_data_dir), workdir, weights=weights)
        assert result.counted == 16
        assert set(result.scalars) >= {"verb/loss", "noun/top1", "action/top1"}
    clip = next((old_data_dir / "moving_digits" / "videos").glob("*.mp4"))
    assert set(predict.Predictor(workdir)(clip).ranked) == {"verb", "noun", "action"}
