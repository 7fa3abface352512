"""Schedules and optimizers against the published recipe in NumPy, and against optax."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax import optim
from vivit_jax.models import ViViTConfig, abstract_params
from vivit_jax.optim import OptimizerConfig
from vivit_jax.utils.trees import path_name


def test_cosine_schedule_with_warm_up():
    config = OptimizerConfig(learning_rate=0.4, warmup_epochs=2.5)
    schedule = optim.learning_rate_schedule(config, total_steps=100, steps_per_epoch=4, batch_size=8)
    for step in range(101):
        ramp = min(1.0, step / 10)
        expected = 0.4 * ramp if step < 10 else 0.4 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7), step


@pytest.mark.parametrize(
    "warmup", [{"warmup_epochs": 2.5}, {"warmup_steps": 10}, {"warmup_examples": 80, "warmup_epochs": 0}]
)
@pytest.mark.parametrize(
    ("fields", "decay"),
    [
        ({"schedule": "linear", "end_learning_rate": 0.1}, lambda s: 0.4 - 0.3 * min(1, s / 90)),
        ({"schedule": "step", "schedule_steps": (30, 60)}, lambda s: 0.4 * 0.1 ** ((s >= 20) + (s >= 50))),
        (
            {"schedule": "step", "schedule_steps": [7.5], "schedule_unit": "epochs", "step_decay_factor": 0.5},
            lambda s: 0.4 * 0.5 ** (s >= 20),
        ),
        (
            {"schedule": "rsqrt", "rsqrt_timescale": 160, "schedule_unit": "examples"},
            lambda s: 0.4 / math.sqrt(1 + s / 20),
        ),
        ({"schedule": "rsqrt"}, lambda s: 0.4 / math.sqrt(1 + s / 10_000)),
        ({"schedule": "constant"}, lambda s: 0.4),
    ],
)
def test_schedules_in_steps_epochs_and_examples(fields, decay, warmup):
    config = OptimizerConfig(learning_rate=0.4, **fields, **warmup)
    schedule = optim.learning_rate_schedule(config, total_steps=100, steps_per_epoch=4, batch_size=8)
    for step in (0, 5, 9, 10, 29, 30, 31, 59, 60, 61, 99):
        expected = 0.04 * step if step < 10 else decay(step - 10)
        assert float(schedule(jnp.int32(step))) == pytest.approx(expected, abs=1e-7), step


def _leaves(seed):
    rng = np.random.default_rng(seed)
    return {
        "layers": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=(2,))},
        "class_token": rng.normal(size=2),
    }


def _run(config, steps):
    """(schedule, parameters after some steps of `make_optimizer` with fixed gradients)."""
    schedule = optim.learning_rate_schedule(config, total_steps=steps + 1, steps_per_epoch=1, batch_size=8)
    optimizer = optim.make_optimizer(config, schedule)
    params = _as_jax(_leaves(0))
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(_as_jax(_leaves(step + 1)), state, params)
        params = _add(params, updates)
    return schedule, params


def _as_jax(tree):
    return {k: _as_jax(v) if isinstance(v, dict) else jnp.asarray(v, jnp.float32) for k, v in tree.items()}


def _add(a, b):
    return {k: _add(v, b[k]) if isinstance(v, dict) else v + b[k] for k, v in a.items()}


def test_sgd_is_the_published_recipe():
    config = OptimizerConfig(learning_rate=0.3, warmup_epochs=2, clip_norm=1.0)
    schedule, got = _run(config, steps=5)
    flat = lambda t: np.concatenate([t["class_token"], t["layers"]["bias"], t["layers"]["kernel"].ravel()])  # noqa: E731
    params, momentum = flat(_leaves(0)), 0.0
    for step in range(5):
        gradient = flat(_leaves(step + 1))
        gradient = gradient / max(1.0, np.linalg.norm(gradient))
        momentum = 0.9 * momentum + gradient
        params = params - float(schedule(step)) * momentum
    np.testing.assert_allclose(flat(_as_numpy(got)), params, rtol=2e-6, atol=1e-6)


def _as_numpy(tree):
    return {k: _as_numpy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_applies_to_kernels_only(name):
    # With a constant learning rate, weight decay is the only difference between the two runs.
    runs = [
        _run(
            OptimizerConfig(name=name, schedule="constant", warmup_epochs=0, learning_rate=0.01, weight_decay=decay),
            1,
        )[1]
        for decay in (0.0, 0.5)
    ]
    before = _leaves(0)
    np.testing.assert_allclose(
        runs[1]["layers"]["kernel"],
        runs[0]["layers"]["kernel"] - 0.01 * 0.5 * before["layers"]["kernel"],
        atol=1e-6,
    )
    np.testing.assert_array_equal(runs[0]["layers"]["bias"], runs[1]["layers"]["bias"])
    np.testing.assert_array_equal(runs[0]["class_token"], runs[1]["class_token"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "choose one of sgd, adamw, lamb, lion"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 must lie in \(0, inf\)"),
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
        ({"schedule": "cos"}, "choose one of cosine"),
        ({"clip_norm": -1.0}, r"clip_norm=-1.0 must lie in \[0, inf\)"),
        ({"layer_decay": 0.0}, r"layer_decay=0.0 must lie in \(0, 1\]"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must lie in \[0, 1\)"),
        ({"accumulate_steps": 0}, "accumulate_steps=0 must be at least 1"),
        ({"accumulate_steps": 1.5}, "accumulate_steps=1.5 must be a whole number"),
        ({"frozen": (1,)}, "frozen=1 is not a regular expression"),
        ({"frozen": "encoder/("}, "frozen='encoder/\\(' is not a regular expression"),
        ({"warmup_steps": 5, "warmup_examples": 40}, "give one"),
        ({"schedule": "step"}, "must give the steps at which the learning rate changes"),
        ({"schedule": "step", "schedule_steps": (20, 10)}, "ascending"),
        ({"schedule_steps": (20,)}, "is not used by schedule='cosine', only by step"),
        ({"schedule": "rsqrt", "end_learning_rate": 0.1}, "only by cosine and linear"),
    ],
)
def test_bad_values_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "warmup_epochs=2.5 is 25 steps, but the run has only 20"),
        ({"warmup_steps": 20}, "warmup_steps=20 is 20 steps, but the run has only 20"),
        ({"warmup_steps": 5, "schedule": "step", "schedule_steps": (5,)}, "the end of the warm-up, 5"),
        ({"warmup_steps": 5, "schedule": "step", "schedule_steps": (9, 20)}, "that of the run, 20"),
    ],
)
def test_schedule_longer_than_the_run_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        optim.learning_rate_schedule(OptimizerConfig(**fields), total_steps=20, steps_per_epoch=10, batch_size=8)


def _model_2():
    """Parameters of a tiny Model 2 with 3 spatial and 2 temporal layers, and two trees of gradients."""
    config = ViViTConfig(
        attention="factorised_encoder",
        hidden_size=4,
        num_layers=3,
        num_heads=2,
        mlp_dim=8,
        temporal_layers=2,
        tubelet_size=(2, 4, 4),
        num_frames=4,
        image_size=8,
        num_classes=(("noun", 4), ("verb", 3)),
    )
    rng, abstract = np.random.default_rng(0), abstract_params(config)
    for encoder in ("spatial_encoder", "temporal_encoder"):  # the MLP has the same kinds of leaves; less to compile
        del abstract[encoder]["layers"]["attention"]
    return [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), abstract) for _ in range(3)]


def _by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _unstacked(tree):
    """{path: leaf}, with one leaf per layer instead of stacked ones."""
    out = {}
    for name, leaf in _by_path(tree).items():
        out |= {f"{name}/{i}": x for i, x in enumerate(leaf)} if "/layers/" in name else {name: leaf}
    return out


@pytest.mark.parametrize("name", ["lamb", "lion", "adamw"])
def test_optimizers_match_optax_on_unstacked_layers(name):
    config = OptimizerConfig(name=name, warmup_epochs=0, schedule="constant", weight_decay=0.1, clip_norm=0.0)
    params, *gradients = _model_2()
    ours, flat = optim.make_optimizer(config, optax.constant_schedule(0.1)), _unstacked(params)
    published = {"lamb": {"b2": 0.999, "eps": 1e-8}, "lion": {"b2": 0.99}, "adamw": {"b2": 0.999, "eps": 1e-8}}[name]
    kernels = {path: "kernel" in path for path in flat}
    theirs = getattr(optax, name)(0.1, b1=0.9, weight_decay=0.1, mask=kernels, **published)
    state, their_state = ours.init(params), theirs.init(flat)
    step, their_step = (jax.jit(optimizer.update) for optimizer in (ours, theirs))
    for gradient in gradients:
        update, state = step(gradient, state, params)
        their_update, their_state = their_step(_unstacked(gradient), their_state, flat)
        params, flat = optax.apply_updates(params, update), optax.apply_updates(flat, their_update)
    for path, leaf in _unstacked(params).items():
        np.testing.assert_allclose(leaf, flat[path], rtol=2e-5, atol=1e-6, err_msg=path)


def test_layer_decay_and_head_learning_rate_of_model_2():
    params, gradients, _ = _model_2()
    plain = OptimizerConfig(name="adamw", warmup_epochs=0, weight_decay=0.1)
    scaled = OptimizerConfig(name="adamw", warmup_epochs=0, weight_decay=0.1, layer_decay=0.5, head_learning_rate=3.0)
    one, other = (
        _by_path(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0])
        for optimizer in (optim.make_optimizer(config, lambda step: 0.1) for config in (plain, scaled))
    )
    for name, update in one.items():
        if name.startswith("head"):
            factor = np.array([3.0])
        elif "/layers/" in name:  # five layers: the last has 1/2, the first 1/32
            factor = 0.5 ** (np.array([5, 4, 3]) if name.startswith("spatial") else np.array([2, 1]))
        elif "/norm/" in name:  # after the layers of its encoder
            factor = np.array([0.25 if name.startswith("spatial") else 1.0])
        else:  # before them: tokeniser, positions, class tokens
            factor = np.array([0.125 if name.startswith("temporal") else 1 / 64])
        factor = factor.reshape(-1, *[1] * (update.ndim - 1))
        np.testing.assert_allclose(other[name], update * factor, rtol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="does not know the depth of class_token"):
        optim.learning_rate_factors(_leaves(0), 0.5)


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_frozen_parameters_have_no_update_state_or_norm(name):
    params, gradients, _ = _model_2()
    config = OptimizerConfig(
        name=name, warmup_epochs=0, weight_decay=0.1, frozen=("^tokenizer/", "^spatial_encoder/"), layer_decay=0.5
    )
    optimizer = optim.make_optimizer(config, lambda step: 0.1)
    updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    kept = {k: v for k, v in params.items() if k not in ("tokenizer", "spatial_encoder")}
    # Expected: training a tree without them, with the factors of the whole tree (freezing does not change depths).
    alone = optim.make_optimizer(OptimizerConfig(name=name, warmup_epochs=0, weight_decay=0.1), lambda step: 0.1)
    expected, alone_state = jax.jit(alone.update)({k: gradients[k] for k in kept}, alone.init(kept), kept)
    factors = optim.learning_rate_factors(params, 0.5)
    for path, update in _by_path(updates).items():
        if path.split("/")[0] in kept:
            np.testing.assert_allclose(update, _by_path(expected)[path] * _by_path(factors)[path], rtol=1e-5)
        else:
            assert not np.any(update), path
    assert sum(x.size for x in jax.tree.leaves(state)) == sum(x.size for x in jax.tree.leaves(alone_state))


def test_pattern_without_match_is_rejected_with_paths():
    for fields, message in (
        ({"frozen": "^encodr"}, r"frozen='\^encodr' is found in no parameter's path; .*class_token, layers/bias"),
        ({"frozen": "."}, "leaves nothing to train"),
        ({"decay_pattern": "weight$", "weight_decay": 0.1}, "decay_pattern='weight\\$' is found in no"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.make_optimizer(OptimizerConfig(**fields), lambda step: 0.1).init(_as_jax(_leaves(0)))


def test_weight_decay_follows_the_pattern():
    config = OptimizerConfig(warmup_epochs=0, weight_decay=0.5, decay_pattern="class_token|bias")
    optimizer, params = optim.make_optimizer(config, lambda step: 0.1), _as_jax(_leaves(0))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["class_token"], -0.05 * params["class_token"], rtol=1e-6)
    np.testing.assert_allclose(updates["layers"]["bias"], -0.05 * params["layers"]["bias"], rtol=1e-6)
    np.testing.assert_array_equal(updates["layers"]["kernel"], 0)
