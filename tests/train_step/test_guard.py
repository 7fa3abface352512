"""The guard: a run with steps that must be skipped, against the run without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import optim, sharding
from vivit_jax.train_step import TrainState, make_train_step
from vivit_jax.train_step.guard import GuardConfig, GuardState, check_step


def model(variables, video, train, rngs=None):
    """Mean colour of the clip -> three classes; a clip that is all 255 makes the logits NaN."""
    features = video.mean(axis=(1, 2, 3))
    broken = jnp.where(features.min(-1, keepdims=True) >= 1.0, jnp.nan, 0.0)
    return features @ variables["params"]["kernel"] + broken


def batch_of(seed, video=None):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.integers(0, 200, (8, 2, 4, 4, 3), dtype=np.uint8) if video is None else video,
        "label": {"label": rng.integers(0, 3, 8).astype(np.int32)},
        "mask": np.ones(8, np.float32),
    }


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("devices", [1, 8])
def test_nan_step_changes_nothing_to_the_bit(devices):
    config = optim.OptimizerConfig(name="adamw", warmup_epochs=0, weight_decay=0.1)
    schedule = optim.learning_rate_schedule(config, total_steps=9, steps_per_epoch=1, batch_size=1)
    optimizer = optim.make_optimizer(config, schedule)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    broken = batch_of(0)["video"]
    broken[3] = 255
    good, bad = [batch_of(seed) for seed in range(3)], batch_of(7, broken)

    def run(batches):
        step = jax.jit(make_train_step(model, optimizer, schedule, ema_decay=0.9), donate_argnums=0)
        with jax.set_mesh(mesh):
            # -0.0 would become 0.0 by adding an update of zero.
            state = TrainState.create({"kernel": jnp.full((3, 3), -0.0)}, optimizer, ema_decay=0.9)
            state, seen = jax.device_put(state, sharding.replicated(mesh)), []
            for batch in batches:
                state, metrics = step(state, sharding.place_batch(batch, mesh, 8))
                seen.append({name: float(value) for name, value in metrics.items()})
        return state, seen

    first, _ = run([bad, bad])
    assert bits(first.params) == bits({"kernel": np.full((3, 3), -0.0, np.float32)}) == bits(first.ema)
    state, seen = run([*good[:2], bad, bad, good[2]])
    without, expected = run(good)
    for tree in ("params", "opt_state", "ema"):
        assert bits(getattr(state, tree)) == bits(getattr(without, tree)), tree
    assert [m["skipped"] for m in seen] == [0, 0, 1, 1, 0]
    assert [m["skipped_in_a_row"] for m in seen] == [0, 0, 1, 2, 0]
    assert (int(state.step), int(state.guard.skipped), int(state.guard.consecutive_skips)) == (5, 2, 0)
    assert np.isnan(seen[2]["loss"])
    assert seen[2]["update_norm"] == 0
    assert seen[4]["learning_rate"] == expected[2]["learning_rate"]  # the schedule waits, as the optimizer's own does


def test_spikes_are_relative_to_the_average_of_accepted_steps():
    config = GuardConfig(spike_factor=3.0, spike_warmup=4)
    state, average, count = GuardState.create(), 0.0, 0
    norms = [1.0, 50.0, 2.0, 1.0, 30.0, 80.0, 1.5, np.inf, 2.0]
    for norm in norms:
        limit = 3 * average / (1 - 0.99**count) if count >= 4 else np.inf
        accept, state = jax.jit(check_step, static_argnums=0)(config, state, 1.0, jnp.float32(norm))
        assert bool(accept) == (norm <= limit and np.isfinite(norm)), norm
        if accept:
            average, count = 0.99 * average + 0.01 * norm, count + 1
    assert float(state.norm_average) == pytest.approx(average, rel=1e-6)
    # The average of 1, 50, 2 and 1 lets 30 pass and not 80.
    assert (int(state.accepted), int(state.skipped), int(state.consecutive_skips)) == (7, 2, 0)
    off = GuardConfig()
    assert bool(check_step(off, state, 1.0, jnp.float32(1e9))[0])
    assert not bool(check_step(off, state, jnp.nan, jnp.float32(1.0))[0])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spike_factor": 0.5}, "spike_factor=0.5 must be 0, for off, or greater than 1"),
        ({"max_consecutive": 0}, "max_consecutive=0 must be at least 1"),
        ({"spike_warmup": 0}, "spike_warmup=0 must be at least 1"),
    ],
)
def test_guard_config_out_of_range_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        GuardConfig(**fields)
