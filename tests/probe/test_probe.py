"""Probes of frozen features: k-NN and regression against scikit-learn, the cache, the program."""

import dataclasses
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags, logging
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits
from tests.helpers.experiment import experiment
from tests.helpers.small_models import random_params
from vivit_jax import convert, sharding
from vivit_jax.config.flags import load_config
from vivit_jax.data import build, pipeline
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import metrics
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.probe import ProbeConfig, check_classes, classifiers, features, probe
from vivit_jax.probe import __main__ as program
from vivit_jax.probe.__main__ import define_flags, settings_of

HEADS = {"verb": 8, "noun": 10}
# 40 videos do not contain every pair of motion and digit.
QUICK = ProbeConfig(neighbours=(3, 7), inverse_penalties=(0.01,), temporal_views=2)
KNN = ProbeConfig(methods=("knn",), neighbours=(3,))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_digits(folder, 40, 13)
    return folder


@pytest.fixture(scope="module")
def split(data_dir):
    return open_split(build.records_folder("moving_digits", data_dir), "validation")


@pytest.fixture(scope="module")
def run(data_dir):
    return experiment(data_dir, model__num_layers=1)


def checkpoint(run, folder, seed=0):
    """Writes a checkpoint with random weights; returns (its folder, model, parameters)."""
    config = run.model_config(HEADS)
    params = random_params(config, seed=seed, dtype=np.float32)
    names = {head: [f"{head} {i}" for i in range(count)] for head, count in HEADS.items()}
    convert.save_params(params, folder, "orbax", config, class_names=names, record=run.to_dict())
    return folder, ViViT(config), params


@pytest.fixture(scope="module")
def first(run, tmp_path_factory):
    return checkpoint(run, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture
def computed(monkeypatch):
    """Names of the splits whose features were computed rather than read from disk."""
    seen, real = [], pipeline.eval_batches

    def record(split, *args, **kwargs):
        seen.append(split.name)
        return real(split, *args, **kwargs)

    monkeypatch.setattr(pipeline, "eval_batches", record)
    return seen


def clusters(rng, labels, classes, noise, width=12):
    """Linearly separable features: a random centre for each class, on scales from 0.001 to 1000."""
    centres = rng.normal(size=(classes, width))
    features = centres[labels] + noise * rng.normal(size=(len(labels), width))
    return (features * np.logspace(-3, 3, width) + 5).astype(np.float32)


def test_votes_match_sklearn_by_cosine_distance():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 6)).astype(np.float32) + 0.5 for n in (60, 17))
    labels = rng.integers(5, size=60)
    several = (rng.uniform(size=(60, 3)) < 0.4).astype(np.uint8)
    targets = {"one": labels, "several": several}, {"one": 5, "several": 3}
    votes_by_k = classifiers.knn_votes(train, *targets, test, ProbeConfig(neighbours=(1, 4, 60), temperature=0.07))
    for k, shares in votes_by_k.items():
        weigh = {"metric": "cosine", "algorithm": "brute", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
        other = KNeighborsClassifier(k, **weigh).fit(train, labels)
        np.testing.assert_allclose(shares["one"], other.predict_proba(test), atol=2e-5)
        for head in range(3):
            other = KNeighborsClassifier(k, **weigh).fit(train, several[:, head])
            expected = other.predict_proba(test)[:, 1]
            np.testing.assert_allclose(shares["several"][:, head], expected, atol=2e-5)
    with pytest.raises(ValueError, match="k=60, but 59 training videos are readable"):
        classifiers.knn_votes(train[:59], *targets, test, ProbeConfig(neighbours=(1, 60)))


def test_scores_match_numpy_and_need_a_vote():
    rng = np.random.default_rng(1)
    shares = {head: rng.dirichlet(np.ones(count), 50) for head, count in HEADS.items()}
    shares["verb"][:25, 3] = 0  # as if no neighbour had this class
    truth = {head: rng.integers(count, size=50) for head, count in HEADS.items()}
    truth["verb"][:10] = 3
    scores = classifiers.score(shares, truth, HEADS)
    pairs = (shares["verb"][:, :, None] * shares["noun"][:, None, :]).reshape(50, -1)
    for head, values, right in (
        ("verb", shares["verb"], truth["verb"]),
        ("noun", shares["noun"], truth["noun"]),
        ("action", pairs, truth["verb"] * 10 + truth["noun"]),
    ):
        top = np.argsort(-values, axis=1, kind="stable")
        for k in (1, 5):
            hit = (top[:, :k] == right[:, None]).any(1) & (values[np.arange(50), right] > 0)
            assert scores[f"{head}/top{k}"] == pytest.approx(hit.mean())
    # A single neighbour: the next four class ids have no vote.
    alone = classifiers.score({"label": np.eye(8)[[6, 6]]}, {"label": np.array([6, 0])}, {"label": 8})
    assert alone == {"top1": 0.5, "top5": 0.5}
    # A head of its own for actions, which are then no pairs.
    own = shares | {"action": np.eye(7)[np.full(50, 6)]}, truth | {"action": np.full(50, 6)}
    assert classifiers.score(*own, HEADS | {"action": 7})["action/top1"] == 1


def test_linear_probe_matches_sklearn_grid_search():
    rng = np.random.default_rng(2)
    labels = rng.integers(4, size=120)
    train, test = clusters(rng, labels, 5, noise=2.5), clusters(rng, labels[:30], 5, noise=2.5)
    settings = ProbeConfig(inverse_penalties=(1.0, 0.001, 0.05))
    probabilities, penalty = classifiers.fit_linear(train, labels, test, 5, settings)
    held_out = classifiers.hold_out(labels, 0.2)
    assert [held_out[labels == i].mean() for i in range(4)] == pytest.approx([0.2] * 4, abs=0.03)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.001, 0.05, 1.0]},
        cv=PredefinedSplit(np.where(held_out, 0, -1)),
    ).fit(train, labels)
    assert penalty == search.best_params_["logisticregression__C"]
    assert len(set(search.cv_results_["mean_test_score"])) > 1  # the choice matters
    np.testing.assert_allclose(probabilities[:, :4], search.predict_proba(test), atol=1e-5)
    assert (probabilities[:, 4] == 0).all()  # a class without a training video


def test_linear_probe_of_separable_features_and_of_noise():
    rng = np.random.default_rng(3)
    labels, test_labels = rng.integers(4, size=300), rng.integers(4, size=600)
    both = clusters(rng, np.concatenate([labels, test_labels]), 4, noise=0.1)
    noise = rng.normal(size=both.shape).astype(np.float32)

    def accuracy(x):
        probabilities, _ = classifiers.fit_linear(x[:300], labels, x[300:], 4, ProbeConfig())
        return classifiers.score({"label": probabilities}, {"label": test_labels}, {"label": 4})["top1"]

    assert accuracy(both) == 1
    assert accuracy(noise) == pytest.approx(0.25, abs=0.07)  # four standard deviations


def test_linear_probe_of_a_multi_label_head():
    rng = np.random.default_rng(4)
    hidden = rng.normal(size=(300, 4)).astype(np.float32)
    labels = np.zeros((300, 5), np.uint8)  # the fifth class has no example
    labels[:, :4] = hidden > 0.2
    x = hidden @ rng.normal(size=(4, 9)).astype(np.float32)
    probabilities, penalty = classifiers.fit_linear(
        x[:200], labels[:200], x[200:], 5, ProbeConfig(inverse_penalties=(0.1, 10.0)), "sound"
    )
    assert penalty == 10
    scores = classifiers.score({"label": probabilities}, {"label": labels[200:]}, {"label": 5})
    assert list(scores) == [metrics.MEAN_AVERAGE_PRECISION]
    assert scores[metrics.MEAN_AVERAGE_PRECISION] > 0.99
    each = make_pipeline(StandardScaler(), LogisticRegression(C=10.0)).fit(x[:200], labels[:200, 1])
    np.testing.assert_allclose(probabilities[:, 1], each.predict_proba(x[200:])[:, 1], atol=1e-4)


def test_errors_of_linear_probe_and_settings():
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"at least 2 classes|one class"):
        classifiers.fit_linear(x, np.full(4, 3), x, 8, ProbeConfig(inverse_penalties=(0.1,)), "verb")
    with pytest.raises(ValueError, match=r"no class of head 'verb' has two training videos.*give one C \(--c=1.0\)"):
        classifiers.fit_linear(x, np.arange(4), x, 8, ProbeConfig(), "verb")
    assert classifiers.hold_out(np.array([0, 0, 1, 2, 2, 2]), 0.9).tolist().count(True) == 3  # one video a class stays
    for wrong, message in (
        ({"methods": ("svm",)}, "svm is not known; choose from knn, linear"),
        ({"neighbours": (0,)}, "must each be at least 1"),
        ({"inverse_penalties": (0.1, -1.0)}, "must each be greater than 0"),
        ({"spatial_views": 4}, "spatial_views=4 is not known; choose one of 1, 2, 3"),
        ({"methods": ()}, "methods is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ProbeConfig(**wrong)


def extract(run, first, workdir, split, settings, params=None):
    """Returns the features of a split for `params`, or for the checkpoint's parameters if they are None."""
    _, model, own = first
    mesh = sharding.make_mesh()
    placed = jax.device_put(own if params is None else params, sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        return features.extract([split], model, placed, "W", mesh, run, settings, workdir)[0]


def test_features_are_averaged_over_the_views(run, first, split, tmp_path):
    _, model, params = first
    (batch,) = pipeline.eval_batches(split, run.clip_spec(model.config), 13, temporal_views=2, spatial_views=1)
    apply = jax.jit(lambda view: model.apply({"params": params}, view, train=False, features=True))
    out = [apply(batch["video"][:, view].astype(np.float32) / 127.5 - 1) for view in range(2)]
    expected = np.mean([view["pre_logits"] for view in out], axis=0)
    computed = extract(run, first, tmp_path, split, ProbeConfig(temporal_views=2))
    np.testing.assert_allclose(computed.values, expected, atol=2e-5)  # 13 videos in batches of 8
    assert computed.readable.all()


@pytest.mark.slow
def test_features_are_cached_by_weights_and_views(run, first, split, tmp_path, computed):
    folder, _, params = first
    result = probe(run, folder, tmp_path, QUICK)
    assert computed == ["train", "validation"]
    assert not result["features"]["train"]["cached"]
    assert set(result["results"]) == {"knn/3", "knn/7", "linear"}
    again = probe(run, folder, tmp_path, QUICK)
    assert computed == ["train", "validation"]
    assert again["features"]["train"]["cached"]
    assert again["results"] == result["results"]
    assert again["results"] == json.loads((tmp_path / "probe.json").read_text())["results"]

    def compute(settings=QUICK, params=None, of=split):
        del computed[:]
        return extract(run, first, tmp_path, of, settings, params)

    first_features = compute()
    assert (first_features.cached, computed) == (True, [])
    other = compute(params=random_params(first[1].config, seed=1, dtype=np.float32))
    assert (other.cached, computed) == (False, ["validation"])
    assert np.abs(other.values - first_features.values).max() > 0.1
    assert not compute(dataclasses.replace(QUICK, temporal_views=1)).cached
    assert compute(of=dataclasses.replace(split, labels={})).cached
    checksums = split.chunk_checksum + (np.arange(len(split.chunk_checksum)) == 3).astype(np.uint32)
    assert not compute(of=dataclasses.replace(split, chunk_checksum=checksums)).cached
    assert compute().cached  # the older file still exists
    for file in (tmp_path / features.FOLDER).glob("validation-*.npz"):
        with np.load(file) as arrays:  # as if the first video could not be read
            np.savez(file, **{**arrays, "readable": np.arange(13) > 0})
    fewer = probe(run, folder, tmp_path, QUICK)
    assert fewer["features"]["held_out"] == {"videos": 13, "unreadable": 1, "cached": True}
    right = 12 * fewer["results"]["linear"]["verb/top1"]  # of the readable videos
    assert right == pytest.approx(round(right))
    for file in (tmp_path / features.FOLDER).glob("validation-*.npz"):
        file.write_bytes(file.read_bytes()[:200])
    recomputed = compute()
    assert not recomputed.cached
    np.testing.assert_array_equal(recomputed.values, first_features.values)
    with pytest.raises(ValueError, match=r"of 13 of 13 videos of validation are not finite.* of W are not"):
        compute(params=jax.tree.map(lambda leaf: leaf * np.nan, params))


def test_evaluated_classes_without_a_training_video_are_named(split, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    nouns = np.arange(13) % 10
    train, evaluated = (dataclasses.replace(split, labels={**split.labels, "noun": ids}) for ids in (nouns % 8, nouns))
    check_classes([train], evaluated)
    (warning,) = warnings
    assert warning.startswith("2 classes of head 'noun' have evaluated videos")
    assert warning.endswith("('eight', 'nine')")


def test_labels_of_single_and_multi_label_heads(split):
    selected = np.arange(13) % 2 == 0
    labels = features.labels_of(split, selected)
    np.testing.assert_array_equal(labels["verb"], split.labels["verb"][::2])
    ids = np.full((13, 2), -1, np.int32)
    ids[0], ids[2, 0], ids[3] = [1, 7], 4, [2, 3]
    several = dataclasses.replace(split, labels={**split.labels, "verb": ids})
    expected = np.zeros((7, 8))
    expected[0, [1, 7]] = expected[1, 4] = 1
    np.testing.assert_array_equal(features.labels_of(several, selected)["verb"], expected)


@pytest.mark.slow
def test_pretrained_weights_are_fitted_to_the_model(run, tmp_path, data_dir):
    image = {"tokenizer": "uniform_frames", "num_frames": 1, "image_size": 56, "num_classes": 7}
    fields = {"hidden_size": 24, "num_layers": 1, "mlp_dim": 32, "num_heads": 3, "tubelet_size": (1, 14, 14)}
    config = ViViTConfig(**fields, **image, activation="gelu")
    convert.save_params(random_params(config, dtype=np.float32), tmp_path / "vit", "huggingface", config)
    result = probe(run, tmp_path / "vit", tmp_path / "w", KNN)
    assert result["checkpoint"] == str(tmp_path / "vit")
    assert result["features"]["dimension"] == 24
    with pytest.raises(FileNotFoundError, match="no weights at"):
        probe(run, tmp_path / "nothing", tmp_path / "w", KNN)


def test_errors_before_features_are_computed(data_dir, first, tmp_path):
    folder, _, _ = first
    one = experiment(data_dir, model__num_layers=1, data__subset={"classes": ["move-right"]})
    with pytest.raises(ValueError, match="the training videos have only the class 'move-right' of head 'verb'"):
        probe(one, folder, tmp_path, KNN)
    assert not (tmp_path / features.FOLDER).exists()  # raised before anything was computed


def test_program_prints_a_table_and_writes_a_file(first, data_dir, tmp_path):
    folder, _, _ = first
    command = [
        sys.executable, "-m", "vivit_jax.probe", f"--checkpoint={folder}", "--config=configs/moving_digits.py",
        f"--config.data.dir={data_dir}", f"--workdir={tmp_path}", "--k=3,7", "--c=0.01",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "24 numbers a video, 1x1 views; 40 training videos, 13 of validation" in lines[0]
    methods = ["| knn/3 ", "| knn/7 ", "| linear ", "C: verb 0.01, noun 0.01"]
    assert all(line.startswith(method) for line, method in zip(lines[3:], methods, strict=True))
    assert "action/top5" in lines[1]
    result = json.loads((tmp_path / "probe.json").read_text())
    assert f"{result['results']['knn/7']['verb/top1']:.1%}" in lines[4]


def test_clips_of_a_derived_config_fit_the_weights(tmp_path, monkeypatch):
    config, given = load_config(str(REPOSITORY / "configs" / "finetune.py")), []
    values = types.SimpleNamespace(config=config, checkpoint="weights", workdir=str(tmp_path))
    monkeypatch.setattr(program.flags, "FLAGS", values)
    monkeypatch.setattr(program.finetuning, "experiment_of", lambda config: given.append(config.init_from.path))
    monkeypatch.setattr(program, "settings_of", lambda values: None)
    monkeypatch.setattr(program, "probe", lambda *args, **options: None)
    values.which = "best"
    program.main([])
    assert given == ["weights"]


def test_flags_become_settings():
    values = flags.FlagValues()
    define_flags(values)
    values(["probe"])
    assert settings_of(values) == ProbeConfig()
    values(["probe", "--k=3,7", "--c=0.5", "--views=4x3", "--method=knn"])
    expected = ProbeConfig(("knn",), 4, 3, (3, 7), inverse_penalties=(0.5,))
    assert settings_of(values) == expected
    values(["probe", "--k=20", "--views=4"])
    assert settings_of(values).spatial_views == 1
    values(["probe", "--k=3,x"])
    with pytest.raises(ValueError, match=r"--k=3,x --c=0\.5: invalid literal"):
        settings_of(values)
