"""A checkpoint is evaluated on data whose classes have another order, spelling or number."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from absl import logging

from tests.helpers.experiment import experiment
from tests.helpers.small_models import random_params
from vivit_jax import convert
from vivit_jax.data import build
from vivit_jax.data.records.split import load_class_names, open_split, save_class_names
from vivit_jax.evaluation.evaluate import evaluate
from vivit_jax.utils.class_names import ClassNamesError


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """(folder of a checkpoint with random parameters, its scalars on the data of its own order)."""
    folder, settings = tmp_path_factory.mktemp("run") / "run", experiment(data_dir, model__num_layers=1)
    names = load_class_names(build.records_folder("moving_digits", data_dir))
    config = settings.model_config({head: len(of_head) for head, of_head in names.items()})
    convert.save_params(random_params(config, dtype=np.float32), folder, "orbax", config, names, settings.to_dict())
    return folder, evaluate(settings, folder).scalars


def renumbered(data_dir, folder, respell=str, rename=()):
    """A copy of the data with classes in reverse order, respelled, and some renamed."""
    shutil.copytree(data_dir, folder)
    records = build.records_folder("moving_digits", folder)
    names = load_class_names(records)
    split = open_split(records, "validation")
    labels = {head: np.int32(len(names[head]) - 1 - ids) for head, ids in split.labels.items()}
    dataclasses.replace(split, labels=labels).save()
    save_class_names(records, {head: [dict(rename).get(n, respell(n)) for n in of[::-1]] for head, of in names.items()})
    return folder


def test_classes_in_another_order_are_renumbered(run, data_dir, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    folder, expected = run
    respelled = renumbered(data_dir, tmp_path / "data", lambda name: name.upper().replace(" ", "_"))
    settings = experiment(respelled, model__num_layers=1)
    assert evaluate(settings, tmp_path / "out", folder).scalars == pytest.approx(expected, rel=1e-5)
    assert any("8 are spelled otherwise: " in line for line in warnings), warnings
    # The report has the order and the spelling of the data.
    names = load_class_names(build.records_folder("moving_digits", respelled))
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["name"] for row in written["classes"]["verb"]] == names["verb"]


def test_other_classes_are_refused_and_a_part_is_evaluated(run, data_dir, tmp_path):
    folder, _ = run
    names = load_class_names(build.records_folder("moving_digits", data_dir))["verb"]
    other = renumbered(data_dir, tmp_path / "data", rename={names[0]: "juggle"})
    used = np.unique(open_split(build.records_folder("moving_digits", other), "validation").labels["verb"])
    assert len(names) - 1 in used, "the renamed class has no video"
    settings = experiment(other, model__num_layers=1)
    with pytest.raises(
        ClassNamesError, match=rf"(?s)1 \('juggle'\) only in the data, 1 \('{names[0]}'\) only in the m"
    ):
        evaluate(settings, tmp_path / "out", folder)
    known = [names[-1 - i] for i in used if names[-1 - i] != names[0]]
    part = experiment(other, model__num_layers=1, data__subset={"classes": tuple(known)})
    result = evaluate(part, tmp_path / "out", folder)
    assert 0 < result.counted < 13
    assert result.confusion["verb"].shape == (len(names), len(names))
