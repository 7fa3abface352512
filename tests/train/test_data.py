"""A training run on a mixture, with subset, segments and several clips per video."""

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.digits import build_digits
from tests.helpers.experiment import experiment
from vivit_jax import train
from vivit_jax.data import build
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import evaluate, results


def second_data_set(folder):
    """The records of moving_digits under a second name."""
    records = folder / "more_digits" / "1.0.0"
    records.parent.mkdir()
    (records).symlink_to(build.records_folder("moving_digits", folder), target_is_directory=True)
    return records


@pytest.mark.slow
@pytest.mark.long
def test_training_on_a_mixture(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    build_digits(folder, 24, 16)
    second = second_data_set(folder)
    real, opened = build.prepare, open_split
    monkeypatch.setattr(build, "prepare", lambda name, *rest: second if name == "more_digits" else real(name, *rest))

    def renamed(records, split):
        record_split = opened(records, split)
        if records != second:
            return record_split
        verbs = [*record_split.class_names["verb"][:-1], "juggle"]
        return dataclasses.replace(record_split, class_names={**record_split.class_names, "verb": verbs})

    monkeypatch.setattr("vivit_jax.data.open.open_split", renamed)
    changes = {
        "data__mixture": {"moving_digits": 1.0, "more_digits": 1.0},
        "data__unknown_classes": "union",
        "data__subset__fraction": 0.5,
        "input__sampling": "segments",
        "input__stride": 1,
        "input__clips_per_video": 2,
        "evaluation__temporal_views": 2,
        "num_steps": 4,
        "log_every_steps": 1,
    }
    run = experiment(folder, **changes)
    metrics = train.train(run, tmp_path / "w")
    assert all(np.isfinite(value) for value in metrics.values())
    stored = json.loads((tmp_path / "w" / "config.json").read_text())
    assert stored["data"]["mixture"] == {"moving_digits": 1.0, "more_digits": 1.0}
    result = evaluate.evaluate(run, tmp_path / "w")
    assert result.confusion["verb"].shape == (9, 9), "the heads of the union"
    assert result.counted == 16, "a fraction is of the training videos"
    written = json.loads((tmp_path / "w" / results.RESULT_FILE).read_text())
    assert written["repeated_views"] == result.repeated_views == 0
    assert written["metrics"] == result.scalars
