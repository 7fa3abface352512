"""Losses against their formulas, written out in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.train_step.losses import LossConfig, example_losses, masked_mean, one_hot_targets, top1_correct


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_cross_entropy_is_the_formula_without_padding(smoothing):
    rng = np.random.default_rng(1)
    logits, labels, mask = rng.normal(size=(5, 4)), rng.integers(0, 4, 5), np.array([1, 1, 0, 1, 0.0])
    target = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    losses = -(target * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)
    targets = one_hot_targets(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    computed = example_losses(jnp.asarray(logits), targets)
    assert float(masked_mean(computed, jnp.asarray(mask))) == pytest.approx(losses[mask > 0].mean(), rel=1e-6)
    assert float(masked_mean(computed, jnp.zeros(5))) == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_cross_entropy_sums_over_classes(smoothing):
    rng = np.random.default_rng(2)
    logits, many = rng.normal(size=(5, 4)) * 3, rng.integers(0, 2, (5, 4))
    single = rng.integers(0, 4, 5)
    for labels, hot in ((many.astype(np.float32), many), (single, np.eye(4)[single])):
        target = hot * (1 - smoothing) + smoothing / 4
        yes = 1 / (1 + np.exp(-logits))
        expected = -(target * np.log(yes) + (1 - target) * np.log(1 - yes)).sum(-1)
        targets = one_hot_targets(jnp.asarray(logits), jnp.asarray(labels), smoothing)
        np.testing.assert_allclose(example_losses(jnp.asarray(logits), targets, "sigmoid"), expected, rtol=2e-6)


def test_top1_correct_accepts_any_of_the_labels():
    logits = jnp.array([[0, 2, 1.0], [0, 2, 1], [5, 2, 1], [5, 2, 1]])
    np.testing.assert_array_equal(top1_correct(logits, jnp.array([1, 2, 0, 1])), [True, False, True, False])
    several = jnp.array([[1, 1, 0.0], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(top1_correct(logits, several), [True, False, True, False])


def test_microbatch_means_add_up_to_the_mean_of_the_batch():
    rng = np.random.default_rng(3)
    values, mask = jnp.asarray(rng.normal(size=8)), jnp.array([1, 0, 0, 0, 1, 1, 1, 1.0])
    parts = sum(masked_mean(values[at::4], mask[at::4], mask.sum()) for at in range(4))
    assert float(parts) == pytest.approx(float(masked_mean(values, mask)), rel=1e-6)


def test_head_weights_and_their_errors():
    assert LossConfig().weights(["verb", "noun"]) == {"verb": 1.0, "noun": 1.0}
    assert LossConfig(head_weights={"noun": 0.25}).weights(["verb", "noun"]) == {"verb": 1.0, "noun": 0.25}
    for make, says in (
        (lambda: LossConfig(name="hinge"), "choose one of softmax, sigmoid"),
        (lambda: LossConfig(head_weights={"verb": -1.0}), r"head_weights.verb=-1.0 must be at least 0"),
        (lambda: LossConfig(head_weights={"action": 1.0}).weights(["verb"]), "names action; the heads are verb"),
        (lambda: LossConfig(head_weights={"verb": 0.0}).weights(["verb"]), "leaves nothing to train"),
        (lambda: one_hot_targets(jnp.zeros((2, 3)), jnp.zeros((2, 4))), "number of classes must be the same"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
