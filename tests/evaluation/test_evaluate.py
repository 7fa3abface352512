"""Evaluation against NumPy on the logits of single views: predictions, fewer views, files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from tests.helpers.digits import build_digits
from tests.helpers.experiment import experiment
from tests.helpers.small_models import random_params
from vivit_jax import convert, sharding
from vivit_jax.checkpoint import CheckpointError
from vivit_jax.data import build, pipeline
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation import metrics, predictions, results
from vivit_jax.evaluation.evaluate import evaluate
from vivit_jax.evaluation.evaluator import Evaluator, spread_indices
from vivit_jax.models import ViViT

VIDEOS, VIEWS = 13, (3, 2)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """(Result of the whole split, maker of Evaluators, (mesh, parameters), {head: logits [V, N, C]}, split)."""
    folder = tmp_path_factory.mktemp("data")
    build_digits(folder, 8, VIDEOS)
    views = {"evaluation__temporal_views": VIEWS[0], "evaluation__spatial_views": VIEWS[1]}
    run = experiment(folder, model__num_layers=1, **views)
    split = open_split(build.records_folder("moving_digits", folder), "validation")
    model = ViViT(run.model_config(split.heads))
    spec = dataclasses.replace(run.clip_spec(model.config), stride=1)  # short clips, so that the views differ
    params = model.init(jax.random.key(0), jnp.zeros((1, *model.config.video_shape)))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)  # heads are initialized to zero, which would tie all classes
    params = tree.unflatten([leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])

    mesh = sharding.make_mesh()

    def evaluator(**options):
        return Evaluator(model, mesh, run, split, spec, **options)

    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.replicated(mesh))
        result = evaluator()(placed)
    apply = jax.jit(lambda video: model.apply({"params": params}, video / 127.5 - 1, train=False))
    (batch,) = pipeline.eval_batches(split, spec, VIDEOS, *VIEWS)
    views = [apply(batch["video"][:, v].astype(np.float32)) for v in range(VIEWS[0] * VIEWS[1])]
    logits = {head: np.stack([np.asarray(view[head], np.float64) for view in views]) for head in views[0]}
    return result, evaluator, (mesh, placed), logits, split


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_predictions_are_those_of_the_averaged_logits(evaluation):
    result, _, _, logits, split = evaluation
    table = result.predictions
    np.testing.assert_array_equal(table.index, np.arange(VIDEOS))
    assert table.video.tolist() == split.video_id.tolist()
    assert table.counted.all()
    assert list(table.heads) == ["verb", "noun", "action"]
    shares = {head: softmax(values.mean(0)) for head, values in logits.items()}
    shares["action"] = (shares["verb"][:, :, None] * shares["noun"][:, None, :]).reshape(VIDEOS, -1)
    truths = dict(split.labels) | {"action": split.labels["verb"] * 10 + split.labels["noun"]}
    for head, rows in table.heads.items():
        order = np.argsort(-shares[head], axis=1, kind="stable")
        of_truth = shares[head][np.arange(VIDEOS), truths[head]]
        np.testing.assert_array_equal(rows.truth, truths[head])
        np.testing.assert_array_equal(rows.top, order[:, :5])
        np.testing.assert_allclose(rows.probabilities, np.take_along_axis(shares[head], order[:, :5], 1), rtol=1e-4)
        np.testing.assert_allclose(rows.truth_probability, of_truth, rtol=1e-4)
        np.testing.assert_allclose(rows.loss, -np.log(of_truth), rtol=1e-4)
        # In float32 the order of two classes whose probabilities differ by less than 1e-5 of themselves is open.
        lowest, highest = (1 + (shares[head] > (1 + sign * 1e-5) * of_truth[:, None]).sum(1) for sign in (1, -1))
        assert ((lowest <= rows.rank) & (rows.rank <= highest)).all()
        assert result.scalars[f"{head}/top1"] == pytest.approx(np.mean(rows.rank == 1))
        if head in split.heads:
            counts = confusion_matrix(truths[head], order[:, 0], labels=range(split.heads[head]))
            np.testing.assert_array_equal(result.confusion[head], counts)


def test_metrics_by_number_of_views(evaluation):
    result, _, _, logits, split = evaluation
    assert list(result.by_views) == [(0,), (0, 2), (0, 1, 2)]
    for temporal, scalars in result.by_views.items():
        views = [t * VIEWS[1] + s for t in temporal for s in range(VIEWS[1])]
        for head, values in logits.items():
            expected = np.mean(values[views].mean(0).argmax(-1) == split.labels[head])
            assert scalars[f"{head}/top1"] == pytest.approx(expected)
            own = np.take_along_axis(softmax(values[views].mean(0)), split.labels[head][:, None], 1)
            assert scalars[f"{head}/loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    last = result.by_views[0, 1, 2]
    assert last == {name: value for name, value in result.scalars.items() if name in last}
    assert len({scalars["verb/loss"] for scalars in result.by_views.values()}) == 3  # the views differ


def test_evaluation_of_a_subset(evaluation):
    whole, evaluator, (mesh, params), _, _ = evaluation
    with jax.set_mesh(mesh):
        part = evaluator(videos=5)(params)
    assert (part.counted, part.split_size, len(part.by_views)) == (5, VIDEOS, VIEWS[0])
    assert "5 videos of 13, each counted once" in part.summary()
    assert part.predictions.index.tolist() == spread_indices(VIDEOS, 5).tolist()
    for head, predicted in part.predictions.heads.items():
        expected = whole.predictions.heads[head].loss[part.predictions.index]
        np.testing.assert_allclose(predicted.loss, expected, rtol=1e-5)


def test_spread_indices_cover_stretches_and_classes():
    indices = spread_indices(1003, 100)
    stretches = [(i * 1003 // 100, (i + 1) * 1003 // 100) for i in range(100)]
    assert all(low <= index < high for index, (low, high) in zip(indices, stretches, strict=True))
    assert set(spread_indices(1000, 100) % 10) == set(range(10))
    np.testing.assert_array_equal(spread_indices(4, 9), np.arange(4))


def test_files_contain_the_result(evaluation, tmp_path):
    result, _, _, _, split = evaluation
    results.write_result(tmp_path, result, "OTHER", "validation", split.class_names, weights="ema")
    with open(tmp_path / "evaluation.json") as earlier:
        results.write_result(tmp_path, result, "CHECKPOINT", "validation", split.class_names)
        earlier = json.load(earlier)  # replaced as a whole
    assert (earlier["checkpoint"], earlier["weights"]) == ("OTHER", "ema")
    rows = list(predictions.read(tmp_path / "predictions.csv"))
    assert [(row["index"], row["head"]) for row in rows[:4]] == [(0, "verb"), (0, "noun"), (0, "action"), (1, "verb")]
    for row in rows:
        of_head = result.predictions.heads[row["head"]]
        assert row["rank"] == of_head.rank[row["index"]]
        assert row["loss"] == pytest.approx(of_head.loss[row["index"]], rel=1e-5)
        assert row["ranked"][0][1] == pytest.approx(of_head.probabilities[row["index"], 0], rel=1e-5)
        assert row["video"] == split.video_id[row["index"]]
        if row["head"] != "action":
            names = split.class_names[row["head"]]
            assert row["truth"] == names[split.labels[row["head"]][row["index"]]]
            assert [name for name, _ in row["ranked"]] == [names[i] for i in of_head.top[row["index"]]]
    verb, noun = rows[0]["truth"], rows[1]["truth"]
    assert rows[2]["truth"] == f"{verb} {noun}"
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["metrics"], written["weights"]) == (result.scalars, "params")
    assert [row["temporal_views"] for row in written["by_temporal_views"]] == [1, 2, 3]
    present = [row for row in written["classes"]["verb"] if row["videos"]]
    assert sum(row["videos"] for row in present) == VIDEOS
    assert np.mean([row["accuracy"] for row in present]) == pytest.approx(result.scalars["verb/mean_class_accuracy"])
    assert all(row["accuracy"] is None for row in written["classes"]["verb"] if not row["videos"])


def test_sigmoid_loss_of_a_single_label_head():
    """Each class is an independent decision: -log sigmoid(z) of the label, -log(1 - sigmoid(z)) of the others."""
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], np.float32)
    labels, mask, index = np.array([0, 2]), np.ones(2), np.arange(2)
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.log(np.where(np.eye(3)[labels] > 0, sigmoid, 1 - sigmoid)).sum(-1)
    batch = {"label": {"label": labels}, "mask": mask, "index": index}
    fields = predictions.of_batch({"label": logits}, batch, "sigmoid")["heads"]["label"]
    np.testing.assert_allclose(fields["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(fields["truth_probability"], sigmoid[np.arange(2), labels], rtol=1e-6)
    kind = metrics.collection({"label": 3}, loss="sigmoid")
    counted = kind.single_from_model_output(logits={"label": logits}, labels={"label": labels}, mask=mask)
    assert metrics.summarise(counted.compute(), {"label": 3})["loss"] == pytest.approx(expected.mean(), rel=1e-6)
    ranked = predictions.rank_labels({"label": logits[0]}, {"label": "abc"}, 3, loss="sigmoid")
    assert ranked["label"] == [(name, pytest.approx(sigmoid[0, i])) for i, name in ((0, "a"), (2, "c"), (1, "b"))]


def test_predictions_of_multi_label_padding_and_broken_videos(tmp_path):
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0], [9.0, 9.0, 9.0], [1.0, 0.0, -1.0]], np.float32)
    labels = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    batch = {"label": {"label": labels}, "mask": np.array([1.0, 1.0, 0.0, 0.0]), "index": np.array([2, 0, -1, 1])}
    batch = predictions.of_batch({"label": logits}, batch)
    table = predictions.Predictions.from_arrays(
        predictions.sort_by_index([jax.device_get(batch)]), np.array(["a", "b", "c"]), ["label"]
    )
    assert (table.index.tolist(), table.video.tolist()) == ([0, 1, 2], ["a", "b", "c"])
    assert table.counted.tolist() == [True, False, True]
    head = table.heads["label"]
    assert head.rank.tolist() == [0, 1, 2]  # no label; the first; the second of the ranking (class 2)
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert head.truth_probability[2] == pytest.approx(sigmoid[0, 1:].mean(), rel=1e-6)
    assert np.isnan(head.truth_probability[0])
    assert head.loss[0] == pytest.approx(-np.log(1 - sigmoid[1]).sum(), rel=1e-6)

    predictions.write(tmp_path / "p.csv", table, {"label": ["x, y", '"q"', "<z>"]})
    rows = list(predictions.read(tmp_path / "p.csv"))
    assert [row["truth"] for row in rows] == ["", "x, y", '"q"; <z>']
    assert rows[1]["ranked"] == []
    assert [name for name, _ in rows[2]["ranked"]] == ["x, y", "<z>", '"q"']
    assert metrics.has_action({"verb": 2, "noun": 3}, {"verb"}) is False


def test_a_model_without_a_classifier_is_refused(tmp_path):
    run = experiment(tmp_path, model__num_layers=1)
    config = run.model_config({})
    convert.save_params(random_params(config, dtype=np.float32), tmp_path / "run", "orbax", config, {}, run.to_dict())
    with pytest.raises(CheckpointError, match="holds a model without a classifier, which has no labels"):
        evaluate(run, tmp_path / "out", tmp_path / "run")


def test_a_head_named_action_is_not_replaced_by_pairs():
    heads = {"verb": 2, "noun": 3, "action": 7}
    logits = {head: np.arange(classes, dtype=np.float32)[None] for head, classes in heads.items()}
    labels = {head: np.array([classes - 1]) for head, classes in heads.items()}
    fields = predictions.of_batch(logits, {"label": labels, "mask": np.ones(1), "index": np.arange(1)}, "sigmoid")
    assert fields["heads"]["action"]["top"].tolist() == [[6, 5, 4, 3, 2]]
    names = {head: list("abcdefg"[:classes]) for head, classes in heads.items()}
    ranked = predictions.rank_labels({head: x[0] for head, x in logits.items()}, names, 5, loss="sigmoid")
    assert ranked["action"][0] == ("g", pytest.approx(1 / (1 + np.exp(-6))))
    counted = metrics.collection(heads).single_from_model_output(logits=logits, labels=labels, mask=np.ones(1))
    assert metrics.summarise(counted.compute(), heads)["action/top5"] == 1
