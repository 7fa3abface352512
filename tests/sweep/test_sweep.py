"""Sweeps: planned runs, skipped runs, failures and the table. Training is replaced by a stub."""

import csv
import dataclasses
import io
import statistics
import types

import pytest

from tests.conftest import REPOSITORY
from vivit_jax import sweep as sweeps
from vivit_jax.config.experiment import ConfigError
from vivit_jax.config.flags import load_config
from vivit_jax.sweep import run_all
from vivit_jax.train.compiled_step import OutOfDeviceMemory

FILE = """
from vivit_jax.config.experiment import default_config


def get_config():
    config = default_config().lock()
    config.data.name = "moving_digits"
    config.model.name = "ViViT-Ti/16x2"
    config.seed = 7
    return config


def sweep():
    whole = get_config()
    whole.batch_size = 8
    return {
        "images": {"model.num_frames": 2},
        "video": {"init_from.path": "{workdir}/images/seed_{seed}", "input.scale_jitter": (0.9, 1.3)},
        "whole": whole,
    }
"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(FILE)
    return sweeps.load_sweep(path)


@pytest.fixture
def trained(monkeypatch):
    """Records trained runs. Each reaches its seed in percent of accuracy; batches of 8 need too much memory."""
    done = []

    def train(experiment, workdir):
        workdir.mkdir(parents=True)
        if experiment.batch_size == 8:
            raise OutOfDeviceMemory("batch_size=8 does not fit")
        done.append((workdir.parent.name, experiment.seed))
        return {"verb/top1": experiment.seed / 100, "verb/loss": 2.0}

    data = types.SimpleNamespace(heads={"verb": 8, "noun": 10})
    monkeypatch.setattr("vivit_jax.train.train", train)
    monkeypatch.setattr("vivit_jax.data.open.open_data", lambda config: (data, data))
    return done


def test_plan_has_every_row_with_every_seed(module, tmp_path):
    runs = sweeps.plan(module, tmp_path / "s", seeds=[3, 4], overrides={"batch_size": 16})
    assert [(run.row, run.seed) for run in runs] == [
        ("images", 3), ("video", 3), ("whole", 3), ("images", 4), ("video", 4), ("whole", 4),
    ]  # fmt: skip
    assert runs[4].experiment.init_from.path == str(runs[3].workdir) == str(tmp_path / "s" / "images" / "seed_4")
    assert runs[4].experiment.input["scale_jitter"] == [0.9, 1.3]
    assert {run.experiment.batch_size for run in runs} == {16}
    only = sweeps.plan(module, tmp_path / "s", rows="vid")
    assert [(run.row, run.seed) for run in only] == [("video", 7)]


def test_settings_follow_from_data_and_weights_when_a_run_begins(tmp_path, monkeypatch):
    """Rows may start from the weights of other rows, which do not exist when the sweep is planned."""
    config = load_config("finetune")
    config.data.video_dir = str(tmp_path / "videos")
    rows = {"first": {}, "second": {"init_from.path": "{workdir}/first/seed_{seed}"}}
    sweep = types.SimpleNamespace(get_config=config.copy_and_resolve_references, sweep=lambda: rows)
    runs = sweeps.plan(sweep, tmp_path)
    opened = []
    opened_by = "vivit_jax.finetuning.experiment_of"
    monkeypatch.setattr(opened_by, lambda config, workdir: opened.append(config.init_from.path))
    assert [(run.row, run.experiment) for run in runs] == [("first", None), ("second", None)]
    assert opened == [None, str(tmp_path / "first" / "seed_0")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.learning_rte": 1}, r"row images: optimizer.learning_rte=1: .*learning_rate"),
        ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
        ({"batch_size": "many"}, "row images: batch_size='many'"),
    ],
)
def test_invalid_overrides_are_rejected(module, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        sweeps.plan(module, tmp_path, overrides=overrides)


def test_rows_must_be_a_regular_expression(module, tmp_path):
    with pytest.raises(ConfigError, match=r"--rows=\( is no regular expression: missing \)"):
        sweeps.plan(module, tmp_path, rows="(")


def test_finished_runs_are_skipped_and_failures_do_not_stop(module, tmp_path, trained):
    runs = sweeps.plan(module, tmp_path, seeds=[1, 2])
    results = list(run_all(runs))
    assert trained == [("images", 1), ("video", 1), ("images", 2), ("video", 2)]
    assert [bool(run.failure) for run in results] == [False, False, True] * 2
    assert "batch_size=8 does not fit" in results[2].failure
    assert results[0].parameters > 5e6
    assert results[0].gflops > 0

    again = sweeps.plan(module, tmp_path, seeds=[1, 2, 3], rows="images|video")
    assert [sweeps.load_result(run) for run in again[:4]] == [results[0], results[1], results[3], results[4]]
    list(run_all(again))
    assert trained[4:] == [("images", 3), ("video", 3)]
    other = sweeps.plan(module, tmp_path, seeds=[1], rows="video", overrides={"num_epochs": 2.0, "data.prefetch": 9})
    with pytest.raises(ConfigError, match=r"another config \(num_epochs: 30.0 -> 2.0\)"):
        list(run_all(other))


def test_table_has_mean_and_deviation_over_seeds(module, tmp_path, trained):
    runs = sweeps.plan(module, tmp_path, seeds=[20, 30, 70])
    results = list(run_all(runs))
    spread = statistics.stdev([20, 30, 70])
    lines = sweeps.markdown(results).splitlines()
    assert lines[0] == "| row | verb/top1 | parameters | GFLOPs | runs |"
    assert lines[3].startswith(f"| video | 40.0 ± {spread:.1f} | ")
    assert lines[4] == "| whole |  |  |  | 0 (3 failed) |"
    losses = [dataclasses.replace(result, metrics={"verb/loss": 2.0}) for result in results[:2]]
    assert "| 2.000 |" in sweeps.markdown(losses)

    sweeps.write(results, tmp_path, "rows")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "rows.csv").read_text())))
    assert [row["verb/top1"] for row in rows] == ["0.2", "0.2", "", "0.3", "0.3", "", "0.7", "0.7", ""]
    assert (tmp_path / "tables" / "rows.png").stat().st_size > 1000


def test_overrides_are_literals_or_strings():
    overrides = sweeps.parse_overrides(["a.b=1e-3", "c=(2, 14)", "d=adamw", "e=None"])
    assert overrides == {"a.b": 1e-3, "c": (2, 14), "d": "adamw", "e": None}
    with pytest.raises(ConfigError, match="--set=a must be FIELD=VALUE"):
        sweeps.parse_overrides(["a"])


def test_config_without_sweep_is_rejected(tmp_path):
    (tmp_path / "plain.py").write_text("def get_config(): ...")
    with pytest.raises(ConfigError, match=r"plain.py has no sweep\(\)"):
        sweeps.load_sweep(tmp_path / "plain.py")


@pytest.mark.parametrize(
    "file", ["study.py", *(f"paper/{path.name}" for path in (REPOSITORY / "configs" / "paper").glob("[!_]*.py"))]
)
def test_paper_tables_and_study_are_sweeps(file, tmp_path):
    module = sweeps.load_sweep(REPOSITORY / "configs" / file)
    runs = sweeps.plan(module, tmp_path, seeds=[0])
    assert {run.row for run in runs} == set(getattr(module, "ROWS", module.sweep()))
