"""The pure steps on a toy model: milliseconds, and every number known."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax import optim, sharding
from vivit_jax.augment import AugmentConfig
from vivit_jax.train_step import TrainState, as_heads, make_eval_step, make_train_step, normalise
from vivit_jax.train_step.losses import LossConfig


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


def test_normalise_maps_pixels_to_minus_one_to_one():
    np.testing.assert_array_equal(normalise(np.array([0, 255], np.uint8)), [-1.0, 1.0])
    assert normalise(np.array([128], np.uint8)).dtype == jnp.float32


def test_padding_changes_neither_loss_nor_parameters():
    optimizer = optax.sgd(0.1)
    # Without randomness: padding rows would draw from the same key.
    step = make_train_step(linear_without_dropout, optimizer, lambda s: 0.1)
    batch, padded = batch_of(4), batch_of(6)
    padded["video"][:4], padded["label"]["label"][:4] = batch["video"], batch["label"]["label"]
    padded["mask"][4:] = 0
    (one, m1), (two, m2) = (jax.jit(step)(fresh(optimizer), b) for b in (batch, padded))
    np.testing.assert_allclose(one.params["kernel"], two.params["kernel"], rtol=1e-6)
    np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-6)


def test_eight_devices_match_one_and_keys_depend_on_the_seed():
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


def test_losses_of_heads_add_up():
    two = lambda v, x, train, rngs=None: {"verb": linear(v, x, False), "noun": 2 * linear(v, x, False)}  # noqa: E731
    batch = batch_of(4)
    batch["label"] = {"verb": batch["label"]["label"], "noun": batch["label"]["label"]}
    optimizer = optax.sgd(0.1)
    _, metrics = make_train_step(two, optimizer, lambda s: 0.1)(fresh(optimizer), batch)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss/verb"] + metrics["loss/noun"]), rel=1e-6)
    with pytest.raises(ValueError, match=r"the model has the heads \['noun', 'verb'\]"):
        make_train_step(two, optimizer, lambda s: 0.1)(fresh(optimizer), batch_of(4))


def linear_without_dropout(variables, video, train, rngs=None):
    """`linear` without randomness."""
    return linear(variables, video, False)


def deep(variables, video, train, rngs=None):
    """A model with a body and two heads."""
    params = variables["params"]
    features = jnp.tanh(video.mean(axis=(1, 2, 3)) @ params["body"]["kernel"])
    return {head: features @ params[f"head_{head}"]["kernel"] for head in ("noun", "verb")}


def deep_params():
    rng = np.random.default_rng(5)
    draw = lambda *shape: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}  # noqa: E731
    return {"body": draw(3, 4), "head_noun": draw(4, 5), "head_verb": draw(4, 3)}


def deep_batch(size, seed=0):
    batch, rng = batch_of(size, seed), np.random.default_rng(seed)
    several = rng.integers(0, 2, (size, 5)).astype(np.float32)
    batch["label"] = {"noun": several, "verb": batch["label"]["label"]}
    batch["mask"][[0, 4]] = 0  # both in the same of four microbatches, so their weights differ
    return batch


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(mixup=0.5, cutmix=0.5, mix_per_example=True)])
def test_accumulation_matches_whole_batch_without_moving_pixels(augment):
    optimizer = optim.make_optimizer(optim.OptimizerConfig(name="adamw", frozen="^head_verb"), lambda s: 0.1)
    mesh, results = sharding.make_mesh(devices=jax.devices()[:4]), []
    for parts in (1, 4):
        step = jax.jit(
            make_train_step(
                *(deep, optimizer, lambda s: 0.1),
                loss=LossConfig("sigmoid", {"noun": 0.5}),
                label_smoothing=0.1,
                augment=augment,
                accumulate_steps=parts,
                sam_rho=0.05,
            )
        )
        with jax.set_mesh(mesh):
            state = jax.device_put(TrainState.create(deep_params(), optimizer), sharding.replicated(mesh))
            batch = sharding.place_batch(deep_batch(16), mesh, 16)
            compiled = step.lower(state, batch).compile()
            transfers = [
                line
                for line in compiled.as_text().splitlines()
                if any(f" {op}(" in line for op in ("all-gather", "all-to-all", "collective-permute"))
                and ("u8[" in line or "4,4,3]" in line)
            ]
            assert not transfers
            for _ in range(2):
                state, metrics = compiled(state, batch)
        results.append((state, metrics))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_microbatches_have_their_own_dropout_and_must_divide():
    optimizer, batch = optax.sgd(0.1), batch_of(4)
    for name in ("video", "mask"):
        batch[name][2:] = batch[name][:2]
    batch["label"]["label"][2:] = batch["label"]["label"][:2]
    step = make_train_step(linear, optimizer, lambda s: 0.1, accumulate_steps=2)
    # Microbatch 0 has rows 0 and 2, microbatch 1 rows 1 and 3: the same clip everywhere, but other dropout masks.
    batch = {**batch, "video": batch["video"][[0, 0, 0, 0]], "label": {"label": batch["label"]["label"][[0, 0, 0, 0]]}}
    half = {name: jax.tree.map(lambda x: x[:2], values) for name, values in batch.items()}
    whole, _ = step(fresh(optimizer), batch)
    part, _ = make_train_step(linear, optimizer, lambda s: 0.1)(fresh(optimizer), half)
    assert not np.allclose(whole.params["kernel"], part.params["kernel"])
    with pytest.raises(ValueError, match=r"a batch of 5 does not divide into optimizer\.accumulate_steps=2 parts"):
        step(fresh(optimizer), batch_of(5))


def test_a_transformation_that_needs_the_loss_gets_it():
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    state, metrics = make_train_step(linear, optimizer, lambda s: 0.1)(fresh(optimizer), batch_of(4))
    np.testing.assert_allclose(state.opt_state[1].best_value, metrics["loss"], rtol=1e-6)


def test_weighted_single_and_multi_label_heads():
    batch, params = deep_batch(6), deep_params()
    step = make_train_step(deep, optax.sgd(0.1), lambda s: 0.1, loss=LossConfig("sigmoid", {"noun": 0.25}))
    _, metrics = step(TrainState.create(params, optax.sgd(0.1)), batch)
    logits = {
        h: np.asarray(x, np.float64) for h, x in deep({"params": params}, normalise(batch["video"]), False).items()
    }
    hot, keep = {"noun": batch["label"]["noun"], "verb": np.eye(3)[batch["label"]["verb"]]}, batch["mask"] > 0
    for head, x in logits.items():
        losses = (np.logaddexp(0, x) - hot[head] * x).sum(-1)  # -[y log s(x) + (1 - y) log(1 - s(x))]
        right = hot[head][np.arange(6), x.argmax(-1)]
        assert float(metrics[f"loss/{head}"]) == pytest.approx(losses[keep].mean(), rel=1e-5)
        assert float(metrics[f"accuracy/{head}"]) == pytest.approx(right[keep].mean(), rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(
        0.25 * float(metrics["loss/noun"]) + float(metrics["loss/verb"]), rel=1e-6
    )
    with pytest.raises(ValueError, match=r"the head 'noun' has several labels per clip; set loss.name='sigmoid'"):
        make_train_step(deep, optax.sgd(0.1), lambda s: 0.1)(TrainState.create(params, optax.sgd(0.1)), batch)


def gradient_of_linear(kernel, batch):
    """Of softmax cross-entropy of `linear_without_dropout`, written out."""
    features = (batch["video"] / 127.5 - 1).mean(axis=(1, 2, 3))
    exp = np.exp(features @ kernel)
    return features.T @ (exp / exp.sum(-1, keepdims=True) - np.eye(3)[batch["label"]["label"]]) / len(features)


def test_sam_uses_gradients_at_the_perturbed_parameters():
    optimizer, batch, rho = optax.sgd(1.0), batch_of(5), 0.3
    kernel = np.asarray(fresh(optimizer).params["kernel"], np.float64)
    first = gradient_of_linear(kernel, batch)
    second = gradient_of_linear(kernel + rho * first / np.linalg.norm(first), batch)
    sharp, metrics = make_train_step(linear_without_dropout, optimizer, lambda s: 1.0, sam_rho=rho)(
        fresh(optimizer), batch
    )
    _, plain = make_train_step(linear_without_dropout, optimizer, lambda s: 1.0)(fresh(optimizer), batch)
    np.testing.assert_allclose(sharp.params["kernel"], kernel - second, rtol=1e-5, atol=1e-6)
    assert not np.allclose(first, second, rtol=1e-3)
    assert float(metrics["loss"]) == float(plain["loss"])
    # Both passes with one dropout key: with other masks the perturbation would be another.
    with_dropout = [
        make_train_step(linear, optimizer, lambda s: 1.0, sam_rho=r)(fresh(optimizer), batch)[0] for r in (0, 1e-6)
    ]
    np.testing.assert_allclose(*(state.params["kernel"] for state in with_dropout), atol=1e-5)


def test_ema_is_the_formula():
    optimizer = optax.sgd(0.5)
    state = TrainState.create({"kernel": jnp.ones((3, 3)) * jnp.arange(3.0)}, optimizer, ema_decay=0.3)
    step = jax.jit(make_train_step(linear_without_dropout, optimizer, lambda s: 0.5, ema_decay=0.3), donate_argnums=0)
    average = np.asarray(state.params["kernel"])
    for n in range(6):
        state, _ = step(state, batch_of(4, n))
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * np.asarray(state.params["kernel"])
        np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-6)
    with pytest.raises(ValueError, match=r"ema_decay=0\.3 in the step, but not in the state"):
        step(fresh(optimizer), batch_of(4))


def test_frozen_parameters_stay_and_are_not_differentiated():
    params = deep_params()
    params["body"]["kernel"] = params["body"]["kernel"].at[0, 0].set(-0.0)

    def model(variables, video, train, rngs=None):
        # The gradient of a square root at 0 is NaN: it would show if it were computed.
        bad = jnp.sqrt(jnp.abs(variables["params"]["body"]["kernel"][0, 0]))
        return {head: logits + bad for head, logits in deep(variables, video, train).items()}

    config = optim.OptimizerConfig(frozen="^body/", weight_decay=0.1, head_learning_rate=2.0, clip_norm=0.0)
    optimizer = optim.make_optimizer(config, lambda s: 0.1)
    state = TrainState.create(params, optimizer, ema_decay=0.9)
    step = make_train_step(
        model, optimizer, lambda s: 0.1, loss=LossConfig("sigmoid"), ema_decay=0.9, norms_by_part=True
    )
    new, metrics = jax.jit(step)(state, deep_batch(6))
    for tree in (new.params, new.ema):
        assert np.asarray(tree["body"]["kernel"]).tobytes() == np.asarray(params["body"]["kernel"]).tobytes()
    assert not np.allclose(new.params["head_verb"]["kernel"], params["head_verb"]["kernel"])
    assert float(metrics["skipped"]) == 0
    assert float(metrics["learning_rate/head"]) == pytest.approx(0.2)
    change = {part: np.linalg.norm(new.params[part]["kernel"] - params[part]["kernel"]) for part in params}
    for part, expected in change.items():
        assert float(metrics[f"update_norm/{part}"]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert float(metrics[f"parameter_norm/{part}"]) == pytest.approx(
            np.linalg.norm(new.params[part]["kernel"]), rel=1e-5
        )
    gradients = [float(metrics[f"gradient_norm/{part}"]) for part in params]
    assert gradients[0] == 0
    assert float(metrics["gradient_norm"]) == pytest.approx(np.hypot(*gradients[1:]), rel=1e-5)


def test_eval_step_averages_logits_of_views():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 3, 2, 4, 4, 3), dtype=np.uint8)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}
    got = make_eval_step(linear)(params, {"video": video})["label"]
    each = [np.asarray(linear({"params": params}, normalise(video[:, v]), False)) for v in range(3)]
    np.testing.assert_allclose(got, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert set(as_heads({"a": 1})) == {"a"}


@pytest.mark.parametrize("package", ["models", "train_step", "augment", "augment.rand_augment", "optim", "sharding"])
def test_light_packages_import_no_tensorflow(package):
    code = (
        f"import sys, vivit_jax.{package}; "
        "print([m for m in ('tensorflow', 'clu', 'tensorflow_datasets', 'ml_collections', 'av') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
