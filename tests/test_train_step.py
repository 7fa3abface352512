"""The pure steps on a toy model: milliseconds, and every number known."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax import sharding
from vivit_jax.train_step import (
    TrainState,
    as_heads,
    cross_entropy,
    make_eval_step,
    make_train_step,
    normalise,
    one_hot_targets,
)


def linear(variables, video, train, rngs=None):
    """A model with one parameter matrix: mean colour of the clip -> three classes."""
    features = video.mean(axis=(1, 2, 3))
    if train:  # a use of the random key that shows in the loss
        features = features * jax.random.bernoulli(rngs["dropout"], 0.5, features.shape)
    return features @ variables["params"]["kernel"]


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 256, (size, 2, 4, 4, 3), dtype=np.uint8),
        "label": {"label": rng.integers(0, 3, size).astype(np.int32)},
        "mask": np.ones(size, np.float32),
        "index": np.arange(size),
    }


def fresh(optimizer):
    return TrainState.create({"kernel": jnp.ones((3, 3)) * jnp.arange(3.0)}, optimizer)


def test_pixels_become_minus_one_to_one():
    np.testing.assert_array_equal(normalise(np.array([0, 255], np.uint8)), [-1.0, 1.0])
    assert normalise(np.array([128], np.uint8)).dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_formula_and_padding_does_not_count(smoothing):
    rng = np.random.default_rng(1)
    logits, labels, mask = rng.normal(size=(5, 4)), rng.integers(0, 4, 5), np.array([1, 1, 0, 1, 0.0])
    target = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    losses = -(target * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1)
    targets = one_hot_targets(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    got = cross_entropy(jnp.asarray(logits), targets, jnp.asarray(mask))
    assert float(got) == pytest.approx(losses[mask > 0].mean(), rel=1e-6)
    assert float(cross_entropy(jnp.asarray(logits), targets, jnp.zeros(5))) == 0.0


def test_padding_changes_neither_loss_nor_parameters():
    optimizer = optax.sgd(0.1)
    # Without randomness: padding rows would draw from the same key.
    step = make_train_step(lambda v, x, train, rngs: linear(v, x, False), optimizer, lambda s: 0.1)
    batch, padded = batch_of(4), batch_of(6)
    padded["video"][:4], padded["label"]["label"][:4] = batch["video"], batch["label"]["label"]
    padded["mask"][4:] = 0
    (one, m1), (two, m2) = (jax.jit(step)(fresh(optimizer), b) for b in (batch, padded))
    np.testing.assert_allclose(one.params["kernel"], two.params["kernel"], rtol=1e-6)
    np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-6)


def test_eight_devices_give_the_numbers_of_one_and_randomness_follows_seed_and_step_alone():
    optimizer = optax.sgd(0.1, momentum=0.9)
    batches = [batch_of(16, seed) for seed in range(3)]
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        step = jax.jit(make_train_step(linear, optimizer, lambda s: 0.1, seed=3), donate_argnums=0)
        with jax.set_mesh(mesh):
            state = jax.device_put(fresh(optimizer), sharding.replicated(mesh))
            for batch in batches:
                state, metrics = step(state, sharding.place_batch(batch, mesh, 16))
            assert step._cache_size() == 1  # compiled once
        results.append((np.asarray(state.params["kernel"]), float(metrics["loss"])))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6, atol=1e-7)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)
    # Another seed draws other masks.
    other, _ = jax.jit(make_train_step(linear, optimizer, lambda s: 0.1, seed=4))(fresh(optimizer), batches[0])
    same, _ = jax.jit(make_train_step(linear, optimizer, lambda s: 0.1, seed=3))(fresh(optimizer), batches[0])
    assert not np.allclose(other.params["kernel"], same.params["kernel"])


def test_several_heads_add_up():
    two = lambda v, x, train, rngs=None: {"verb": linear(v, x, False), "noun": 2 * linear(v, x, False)}  # noqa: E731
    batch = batch_of(4)
    batch["label"] = {"verb": batch["label"]["label"], "noun": batch["label"]["label"]}
    optimizer = optax.sgd(0.1)
    _, metrics = make_train_step(two, optimizer, lambda s: 0.1)(fresh(optimizer), batch)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss/verb"] + metrics["loss/noun"]), rel=1e-6)
    with pytest.raises(ValueError, match=r"the model has the heads \['noun', 'verb'\]"):
        make_train_step(two, optimizer, lambda s: 0.1)(fresh(optimizer), batch_of(4))


def test_views_are_averaged_as_logits():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 3, 2, 4, 4, 3), dtype=np.uint8)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}
    got = make_eval_step(linear)(params, {"video": video})["label"]
    each = [np.asarray(linear({"params": params}, normalise(video[:, v]), False)) for v in range(3)]
    np.testing.assert_allclose(got, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert set(as_heads({"a": 1})) == {"a"}


@pytest.mark.parametrize("room", ["models", "train_step", "augment", "rand_augment", "optim", "sharding"])
def test_rooms_of_jax_alone_import_no_tensorflow(room):
    code = (
        f"import sys, vivit_jax.{room}; "
        "print([m for m in ('tensorflow', 'clu', 'tensorflow_datasets', 'ml_collections', 'av') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
