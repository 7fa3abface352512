"""Features of files against the model's own output; files that other programs read; search by cosine."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits
from tests.helpers.experiment import config_file, without_pictures
from tests.helpers.small_models import random_params, small_config
from tests.helpers.videos import draw_number, write_video
from vivit_jax import convert, features, probe, search, sharding, train
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import build
from vivit_jax.data.records.split import open_split
from vivit_jax.models import ViViT
from vivit_jax.predict import Predictor
from vivit_jax.probe.features import extract, restore
from vivit_jax.search import nearest
from vivit_jax.train_step import normalise
from vivit_jax.utils import storage


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(a checkpoint of a model without a classifier, its predictor with two views)."""
    config, folder = small_config(num_classes=None), tmp_path_factory.mktemp("features") / "run"
    convert.save_params(random_params(config, dtype=np.float32), folder, "orbax", config)
    return folder, Predictor(folder, temporal_views=2, dtype="float32", classifier=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three different videos, of which the first and the last show almost the same; names are any."""
    folder = tmp_path_factory.mktemp("videos")
    for name, first, height in (("-a.mp4", 3, 64), ("打:%03d.mp4", 200, 64), ("b/-a.mp4", 3, 66)):
        write_video(folder / name, [draw_number(first + i, height) for i in range(12)])
    (folder / "no.mp4").write_bytes(b"no video")
    return folder


def test_features_are_the_input_of_the_head(model, videos):
    predictor, path = model[1], videos / "-a.mp4"
    ((_, views),) = predictor.read([path])
    out = ViViT(predictor.model.config).apply({"params": predictor._params}, normalise(views), features=True)
    found = features.extract(predictor, [path, videos / "b" / "-a.mp4", videos / "no.mp4"])
    assert list(found) == [str(path), str(videos / "b" / "-a.mp4")]
    np.testing.assert_allclose(found[str(path)], out["pre_logits"].mean(axis=0), atol=1e-5)
    tokens = features.extract(predictor, [path], tokens=True)[str(path)]
    assert tokens.shape[0] == len(views) == 6
    np.testing.assert_allclose(tokens, out["tokens"], atol=1e-5)


def test_parquet_is_read_by_pyarrow(model, tmp_path):
    from pyarrow import parquet

    tokens = {name: np.random.default_rng(i).normal(size=(2, 5, 3)).astype(np.float32) for i, name in enumerate("ab")}
    features.save(tmp_path / "x.parquet", tokens, "runs/mine")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table["path"].to_pylist() == ["a", "b"]
    assert table.schema.metadata == {b"checkpoint": b"runs/mine", b"shape": b"(2, 2, 5, 3)"}
    values = np.stack(table["tokens"].to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(values.reshape(2, 2, 5, 3), np.stack(list(tokens.values())))


def test_nearest_matches_sklearn():
    rng = np.random.default_rng(0)
    values, queries = rng.normal(size=(50, 7)) + 0.3, rng.normal(size=(9, 7))
    rows, cosines = nearest(values, queries, 4)
    distances, expected = NearestNeighbors(n_neighbors=4, metric="cosine").fit(values).kneighbors(queries)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-9)
    assert nearest(values[:2], queries, 4)[0].shape == (9, 2)


def test_commands_write_features_and_find_the_most_similar_file(model, videos, tmp_path):
    def run(program, *arguments):
        command = [sys.executable, "-m", f"vivit_jax.{program}", *arguments]
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
        return subprocess.run(command, capture_output=True, text=True, cwd=videos, timeout=300, env=environment)

    missing = tmp_path / "pyarrow" / "__init__.py"
    missing.parent.mkdir()
    missing.write_text("raise ModuleNotFoundError('', name='pyarrow')")
    done = run("features", f"--workdir={model[0]}", f"--out={tmp_path}/x.parquet", ".")
    assert "needs the extra parquet" in done.stderr
    assert "no.mp4" not in done.stderr, "before any file is read"
    done = run("features", f"--workdir={model[0]}", f"--out={tmp_path}/new/x.npz", ".")
    assert "1 of 4 files could not be read" in done.stderr
    assert "no.mp4: not a video" in done.stderr.replace("./", "")
    with np.load(tmp_path / "new" / "x.npz") as arrays:
        assert sorted(arrays["path"]) == ["./-a.mp4", "./b/-a.mp4", "./打:%03d.mp4"]
        assert arrays["features"].shape == (3, 8)
    done = run("search", "--like=-a.mp4", "--json", f"{tmp_path}/new/x.npz")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["file"] for each in found] == ["./b/-a.mp4", "./打:%03d.mp4"], done.stderr
    assert 1 >= found[0]["similarity"] > found[1]["similarity"]


def test_files_that_cannot_be_searched(tmp_path, monkeypatch):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04" + bytes(50))
    np.savez(tmp_path / "tokens.npz", path=["a"], tokens=np.ones((1, 2, 3)))
    monkeypatch.setattr(storage, "path", lambda name: pathlib.Path(name.replace("gs://bucket", str(tmp_path))))
    for arguments, message in (
        ([f"{tmp_path}/bad.npz"], r"bad\.npz cannot be read \(File is not a zip file\)"),
        ([f"{tmp_path}/tokens.npz", "folder"], r"tokens\.npz holds the videos to search: it must be the only argument"),
        (["gs://bucket/tokens.npz"], "tokens.npz has no features, only path, tokens: write it without --tokens"),
    ):
        with pytest.raises(SystemExit, match=message):
            search.main(["search", *arguments])


def test_features_of_other_weights_are_not_compared(tmp_path, monkeypatch):
    np.savez(tmp_path / "f.npz", path=["a"], features=np.ones((1, 3)), checkpoint="run/checkpoints/4")
    monkeypatch.setattr(search.flags, "FLAGS", types.SimpleNamespace(checkpoint=None, workdir="other"))
    monkeypatch.setattr(search.inputs, "start", lambda *_, **__: (types.SimpleNamespace(path="other/4"), []))
    with pytest.raises(SystemExit, match=r"f\.npz holds features of run/checkpoints/4, those of the query would be of"):
        search.main(["search", str(tmp_path / "f.npz")])


@pytest.mark.slow
def test_most_similar_video_shows_the_same_motion(tmp_path):
    """Recall at 1 of held-out videos of the embedded data set, with a model that was trained for half a minute."""
    build_digits(tmp_path / "data", 320, 96)
    config = config_file("moving_digits")
    config.data.dir, config.init_from.image_epochs, config.evaluation.dtype = str(tmp_path / "data"), 0.0, "float32"
    config.num_steps = config.checkpoint.every_steps = 150
    config.evaluation.every_epochs = 0.0
    config.model.update(hidden_size=48, num_layers=2, temporal_layers=1, mlp_dim=96)
    run = Experiment.from_config(config)
    with without_pictures():
        train.train(run, tmp_path / "run")
    split = open_split(build.records_folder("moving_digits", tmp_path / "data"), "validation")
    mesh = sharding.make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        restored = restore(run, tmp_path / "run", mesh, "latest")
        (of_split,) = extract([split], *restored, mesh, run, probe.ProbeConfig(), tmp_path)
    rows, _ = nearest(of_split.values, of_split.values, 2)
    np.testing.assert_array_equal(rows[:, 0], np.arange(96), "each video is most similar to itself")
    verb = split.labels["verb"]
    assert np.mean(verb[rows[:, 1]] == verb) > 0.4, "one in eight by chance"
