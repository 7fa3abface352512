"""Metrics against scikit-learn and NumPy; merged batches give the metrics of the whole."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from vivit_jax.evaluation import metrics

HEADS = {"verb": 8, "noun": 10}


def outputs(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "logits": {h: rng.normal(size=(n, c)).astype(np.float32) for h, c in HEADS.items()},
        "labels": {h: rng.integers(0, c, n).astype(np.int32) for h, c in HEADS.items()},
        "mask": np.ones(n, np.float32),
    }


def part(whole, rows):
    return {k: {h: v[rows] for h, v in x.items()} if isinstance(x, dict) else x[rows] for k, x in whole.items()}


def test_merged_padded_batches_match_sklearn():
    whole = outputs(100)
    padded = part(whole, slice(90, 110))
    junk = outputs(10, seed=1)
    for key in ("logits", "labels"):
        padded[key] = {h: np.concatenate([padded[key][h], junk[key][h]]) for h in HEADS}
    padded["mask"] = np.concatenate([padded["mask"], np.zeros(10, np.float32)])

    kind = metrics.collection(HEADS)
    total = kind.single_from_model_output(**part(whole, slice(0, 90))).merge(kind.single_from_model_output(**padded))
    scalars = metrics.summarise(total.compute(), HEADS)

    for head, classes in HEADS.items():
        truth, scores = whole["labels"][head], whole["logits"][head]
        for k in (1, 5):
            expected = top_k_accuracy_score(truth, scores, k=k, labels=range(classes))
            assert scalars[f"{head}/top{k}"] == pytest.approx(expected)
        confusion = metrics.confusion_matrix(truth, scores.argmax(-1), classes)
        np.testing.assert_array_equal(confusion, confusion_matrix(truth, scores.argmax(-1), labels=range(classes)))
        mean = metrics.mean_over_present(metrics.class_accuracy(confusion))
        assert mean == pytest.approx(balanced_accuracy_score(truth, scores.argmax(-1)))

    # Action: top-1 needs both correct; top-5 the pair among the five highest products of the softmaxes.
    softmax = {h: np.exp(s) / np.exp(s).sum(-1, keepdims=True) for h, s in whole["logits"].items()}
    product = (softmax["verb"][:, :, None] * softmax["noun"][:, None, :]).reshape(100, -1)
    pair = whole["labels"]["verb"] * 10 + whole["labels"]["noun"]
    assert scalars["action/top1"] == pytest.approx(np.mean(product.argmax(-1) == pair))
    assert scalars["action/top5"] == pytest.approx(
        np.mean([p in np.argsort(-r)[:5] for p, r in zip(pair, product, strict=True)])
    )


def test_single_head_of_five_classes_has_no_top5():
    kind = metrics.collection({"label": 5})
    computed = kind.single_from_model_output(
        logits={"label": jnp.eye(5)}, labels={"label": jnp.arange(5)}, mask=jnp.ones(5)
    ).compute()
    scalars = metrics.summarise(computed, {"label": 5})
    assert scalars["top1"] == 1.0
    assert set(scalars) == {"top1", "loss"}


def test_rank_of_ties_and_nan():
    logits = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [jnp.nan, 0.0, 0.0], [0.0, jnp.nan, 1.0]])
    ahead = metrics.rank_of_true_class(logits, jnp.array([0, 1, 0, 2]))
    np.testing.assert_array_equal(ahead, [0, 1, 3, 1])


def test_average_precision_matches_its_definition():
    rng = np.random.default_rng(3)
    truth = (rng.random((60, 6)) < 0.3).astype(float)
    truth[:, 4] = 0  # a class that no video has
    scores = rng.normal(size=(60, 6)).round(1)  # with ties, which share a rank
    expected = []
    for c in range(6):
        total, before = 0.0, 0.0
        for threshold in sorted(set(scores[:, c]), reverse=True):
            taken = scores[:, c] >= threshold
            right = np.sum(taken * truth[:, c])
            recall = right / truth[:, c].sum() if truth[:, c].sum() else np.nan
            total, before = total + (recall - before) * right / taken.sum(), recall
        expected.append(total)

    actual = metrics.average_precision(truth, scores)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert np.isnan(actual[4])
    assert metrics.mean_over_present(actual) == pytest.approx(
        average_precision_score(truth[:, [0, 1, 2, 3, 5]], scores[:, [0, 1, 2, 3, 5]], average="macro")
    )


def test_average_precision_ranks_nan_last():
    truth = np.array([[1], [0], [0]])
    assert metrics.average_precision(truth, np.array([[np.nan], [-1e30], [0.0]])) == pytest.approx([1 / 3])


def test_multi_label_head_has_sigmoid_loss_and_no_top1():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 4)).astype(np.float32), (rng.random((7, 4)) < 0.4).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1, 0], np.float32)
    computed = (
        metrics.collection({"label": 4}, {"label"})
        .single_from_model_output(logits={"label": logits}, labels={"label": labels}, mask=mask)
        .compute()
    )
    scalars = metrics.summarise(computed, {"label": 4})
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    losses = -np.sum(labels * np.log(sigmoid) + (1 - labels) * np.log(1 - sigmoid), axis=1)
    assert scalars == {"loss": pytest.approx(losses[mask > 0].mean(), rel=1e-6)}
    assert metrics.accuracy_names({"label": 4}, {"label"}) == ["mean_average_precision"]
