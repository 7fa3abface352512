"""A run with its workdir in a bucket: interrupted, resumed, evaluated, converted, with the numbers of a local run."""

import json
import sys

import jax
import numpy as np
import pytest
from etils import epath

from tests.helpers import written_weights
from tests.helpers.experiment import STEPS, experiment, without_pictures
from tests.helpers.interrupt import killed_after
from tests.helpers.small_models import random_params, small_config
from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, sharding, train
from vivit_jax.convert.containers.open import open_container
from vivit_jax.evaluation import evaluate
from vivit_jax.utils import logs, storage

pytest.importorskip("google.cloud.storage", reason="the extra [gcs] is not installed: Orbax wants it for gs://")
from tests.helpers import bucket

RUN = "gs://bucket/run"
# One process: the run is trained once.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def server():
    with bucket.gs() as fake_server:
        yield fake_server


@pytest.fixture(scope="module")
def metrics(server, data_dir):
    """Returns the metrics of a run in the bucket that was interrupted half-way; its compilation cache is there too."""
    run = experiment(
        data_dir, compilation_cache=f"{RUN}/compilation_cache", checkpoint__keep_latest=2, profile__steps="5:5"
    )
    with killed_after(STEPS // 2), pytest.raises(KeyboardInterrupt):
        train.train(run, RUN)
    assert checkpointing.locate(RUN)[0] == epath.Path(f"{RUN}/checkpoints")
    return train.train(run, RUN)


def test_metrics_equal_local_run(metrics, data_dir, tmp_path):
    with without_pictures():
        local = train.train(experiment(data_dir), tmp_path / "w")
    assert metrics == pytest.approx(local, abs=1e-6)


def test_whole_run_is_in_bucket(metrics, server):
    names = storage.names(RUN)
    for name in ("checkpoints", "compilation_cache", "config.json", "metrics.jsonl", "pictures", "report.html"):
        assert name in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert storage.names(f"{RUN}/checkpoints") == ["3", "6"]
    assert storage.names(f"{RUN}/compilation_cache")
    assert any(file.name.endswith(".xplane.pb") for file in epath.Path(f"{RUN}/profile/plugins/profile").glob("*/*"))
    assert server.requests["POST"] > 10, "arrays went through tensorstore's own client"
    series = logs.read_metrics(f"{RUN}/metrics.jsonl")
    assert [step for step, _ in series["train/loss"]] == [2, 4, 6], "lines of both starts"


def test_best_checkpoint_is_evaluated_and_loaded(metrics, data_dir):
    result = evaluate.evaluate(experiment(data_dir), RUN)
    assert result.scalars["verb/top1"] == pytest.approx(metrics["verb/top1"], abs=1e-6)
    assert json.loads(epath.Path(f"{RUN}/evaluation.json").read_text())["metrics"]
    model, params, _, _ = evaluate.restore_for_inference(RUN, sharding.make_mesh())
    read = convert.load_params(RUN, config=model.config)
    jax.tree.map(np.testing.assert_array_equal, read, jax.device_get(params))


def test_missing_gcs_extra_is_an_error(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr(sys.modules["google.cloud"], "storage", raising=False)
    with pytest.raises(checkpointing.CheckpointError, match=r"gs://other/run.*pip install 'vivit_jax\[gcs\]'"):
        checkpointing.Checkpoints("gs://other/run")


@pytest.mark.parametrize("kind", written_weights.KINDS)
def test_weights_are_read_from_bucket(server, tmp_path, kind):
    storage.copy(written_weights.write(kind, tmp_path / "weights"), "gs://bucket/weights")
    with open_container("gs://bucket/weights") as weights:
        for name, array in written_weights.FLAT.items():
            np.testing.assert_array_equal(weights.leaves[name].read(), array)


@pytest.mark.parametrize("format", ["scenic", "huggingface", "orbax"])
def test_weights_are_written_to_bucket(server, tmp_path, format):
    config = small_config(attention="spatiotemporal")
    params = random_params(config, dtype=np.float32)
    for target in (tmp_path / format, f"gs://bucket/written/{format}"):
        convert.save_params(params, target, format, config)
        jax.tree.map(np.testing.assert_array_equal, convert.load_params(target, config=config), params)
    with pytest.raises(FileExistsError, match="gs://bucket/written"):
        convert.save_params(params, f"gs://bucket/written/{format}", format, config)


def test_damaged_step_is_quarantined(metrics, data_dir):
    step = epath.Path(f"{RUN}/checkpoints/{STEPS}")
    files = [epath.Path(folder) / name for folder, _, names in step.walk() for name in names]
    largest = max(files, key=lambda file: file.stat().length)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(bytes(content))
    train.train(experiment(data_dir, checkpoint__keep_latest=2), RUN)
    assert storage.names("gs://bucket/run/damaged") == [f"checkpoints-{STEPS}"]
    assert storage.names(f"{RUN}/checkpoints") == ["3", "6"], "trained again from 3"
