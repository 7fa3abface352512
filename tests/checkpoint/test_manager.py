"""Checkpoints on disk: retention, verification, quarantine of damaged ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.checkpoint import CheckpointError, Checkpoints, manager
from vivit_jax.train import initialize, loop
from vivit_jax.train_step import TrainProgram, TrainState

OPTIMIZER = optax.adamw(1e-3)


def state(step, width=4):
    rng = np.random.default_rng(step)
    params = {"head": {"kernel": jnp.asarray(rng.normal(size=(800, width)), jnp.float32), "bias": jnp.zeros(width)}}
    return TrainState.create(params, OPTIMIZER).replace(step=jnp.int32(step))


def abstract(width=4, make=None, **axes):
    mesh = sharding.make_mesh(axes)
    shapes = jax.eval_shape(make or (lambda: state(0, width)))
    return sharding.abstract_like(shapes, sharding.state_sharding(mesh, shapes))


def saved(root, steps, metrics=None, **options):
    with_metrics = metrics or {}
    checkpoints = Checkpoints(root, best_metric="top1", **options)
    for step in steps:
        scores = {"top1": with_metrics[step]} if step in with_metrics else None
        checkpoints.save(step, state(step), {"config": {"seed": 3}}, scores)
        checkpoints.wait()
    return checkpoints


def test_restore_on_another_mesh_is_exact(tmp_path):
    saved(tmp_path / "c", [5]).close()
    restored, metadata = Checkpoints(tmp_path / "c").restore(abstract(fsdp=-1))
    kernel = restored.params["head"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(100, 4)}
    jax.tree.map(np.testing.assert_array_equal, restored, state(5))
    assert (metadata["step"], metadata["config"]) == (5, {"seed": 3})
    assert Checkpoints(tmp_path / "empty").restore(abstract()) is None


def test_newest_and_best_are_kept_and_nan_is_never_best(tmp_path):
    checkpoints = saved(tmp_path / "c", [1, 2, 3, 4, 5], {1: 0.2, 2: 0.9, 3: math.nan, 4: 0.5})
    assert checkpoints.steps() == [2, 5]
    assert (checkpoints.best(), checkpoints.latest()) == (2, 5)
    checkpoints.close()
    no_metric = saved(tmp_path / "d", [1, 2], {1: math.nan})
    assert no_metric.best() == 2  # no step has the metric: the newest


def flip_a_bit(folder):
    """Flips one bit in the largest file of the arrays."""
    data = max(
        (f for f in (folder / "state").rglob("*") if f.is_file() and "/d/" in str(f)),
        key=lambda f: f.stat().st_size,
    )
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    data.write_bytes(bytes(raw))


def test_damaged_checkpoint_is_quarantined(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    saved(root, [1, 2], {1: 0.9, 2: 0.5}).close()
    flip_a_bit(root / "2")
    with pytest.raises(CheckpointError, match="2"):
        Checkpoints(root, read_only=True).restore(abstract(), step=2)
    checkpoints = Checkpoints(root)
    restored, metadata = checkpoints.restore(abstract())
    assert (int(restored.step), metadata["step"]) == (1, 1)
    assert (tmp_path / "run" / "damaged" / "checkpoints-2").is_dir()
    # The run may save that step again.
    checkpoints.save(2, state(2), {}, None)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_checksums_detect_any_bit_and_ignore_the_sharding():
    tree = state(1).params
    before = checkpointing.checksums(tree)
    mesh = sharding.make_mesh()
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    spread = {"head": tree["head"] | {"kernel": jax.device_put(tree["head"]["kernel"], NamedSharding(mesh, P("data")))}}
    assert checkpointing.checksums(spread) == before
    raw = np.array(tree["head"]["kernel"])
    raw.view(np.uint32)[3, 1] ^= 1
    assert checkpointing.checksums({"head": {"kernel": jnp.asarray(raw)}})["head/kernel"] != before["head/kernel"]


def test_restore_params_and_refusal_of_another_model(tmp_path):
    saved(tmp_path / "checkpoints", [7]).close()
    root, step = checkpointing.locate(tmp_path)
    assert (root, step) == (tmp_path / "checkpoints", None)
    assert checkpointing.locate(tmp_path / "checkpoints" / "7")[1] == 7
    with Checkpoints(root, read_only=True) as checkpoints:
        params = checkpoints.restore_params(abstract().params, 7)
        jax.tree.map(np.testing.assert_array_equal, params, state(7).params)
        with pytest.raises(CheckpointError, match=r"head/kernel: model \(800, 6\), checkpoint \(800, 4\)"):
            checkpoints.restore_params(abstract(width=6).params, 7)
        with pytest.raises(CheckpointError, match="holds another model"):
            checkpoints.restore(abstract(width=6))
    assert (tmp_path / "checkpoints" / "7").is_dir()  # not damaged: nothing is moved
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpointing.locate(tmp_path / "nowhere")


def test_workdir_is_locked(tmp_path):
    def use():
        with loop.lock(tmp_path / "run"):
            pass

    with loop.lock(tmp_path / "run"), pytest.raises(CheckpointError, match="another run is using"):
        use()
    use()


def test_missing_ema_starts_from_the_restored_parameters(tmp_path):
    saved(tmp_path / "checkpoints", [7]).close()
    averaged = abstract(make=lambda: TrainState.create(state(0).params, OPTIMIZER, ema_decay=0.9))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        lacking, _ = checkpoints.restore(averaged)
        assert lacking.ema is None
        with pytest.raises(CheckpointError, match="holds no averaged weights"):
            checkpoints.restore_params(averaged.params, 7, "ema")
        whole = initialize.fill_missing_state(TrainProgram(None, OPTIMIZER, 0.9, averaged, None), lacking)
        jax.tree.map(np.testing.assert_array_equal, whole.ema, state(7).params)
        # Donated to the first step, both: they must not be the same buffers.
        moved = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(whole)
        checkpoints.save(8, moved, {}, None)
        checkpoints.wait()
        average = checkpoints.restore_params(averaged.params, 8, "ema")
        np.testing.assert_array_equal(average["head"]["bias"], np.ones(4))
        without, _ = checkpoints.restore(abstract())  # turned off again
        assert without.ema is None


def test_another_optimizer_is_refused_but_not_quarantined(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    saved(root, [1]).close()
    other = abstract(make=lambda: TrainState.create(state(0).params, optax.sgd(0.1, momentum=0.9)))
    with Checkpoints(root) as checkpoints, pytest.raises(CheckpointError, match="the state of another optimizer"):
        checkpoints.restore(other)
    assert (root / "1").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        ValueError("UNKNOWN: Error reading local file: Input/output error [os_error_code='5']"),
        ValueError("UNAVAILABLE: the bucket does not answer"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:9]}",
)
@pytest.mark.parametrize("what", ["metadata", "shapes", "arrays"])
def test_an_outage_is_retried_and_moves_nothing(what, error, tmp_path, monkeypatch):
    checkpoints, attempts = saved(tmp_path / "c", [1, 2], keep_latest=2), []
    monkeypatch.setattr(manager, "_RETRY_SECONDS", (0.0, 0.0))

    def fail(*_, **__):
        attempts.append(1)
        raise error

    owner, name = {
        "metadata": (type(checkpoints.root), "read_text"),
        "shapes": (checkpoints._manager, "item_metadata"),
        "arrays": (manager.ocp.PyTreeCheckpointHandler, "restore"),
    }[what]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(checkpointing.UnavailableError, match="Nothing was changed"):
        checkpoints.restore(abstract())
    assert len(attempts) == 3
    monkeypatch.undo()
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.quarantined() == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", "{x", '{"config": {}, "checksums": {}}'])
def test_damaged_metadata_set_the_step_aside(content, tmp_path):
    saved(tmp_path / "c", [1, 2], keep_latest=2).close()
    (tmp_path / "c" / "2" / "meta" / "metadata").write_text(content)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(abstract())[1]["step"] == 1


@pytest.mark.parametrize("content", ["", "[1]", "{x"])
def test_damaged_metrics_do_not_block_the_other_steps(content, tmp_path):
    saved(tmp_path / "c", [1, 2], {1: 0.1, 2: 0.3}, keep_latest=2).close()
    (tmp_path / "c" / "2" / "meta" / "metadata").write_text(content)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.best() == 1
        assert checkpoints.restore(abstract())[1]["step"] == 1


def test_a_step_can_be_evaluated_after_it_was_saved(tmp_path):
    checkpoints = saved(tmp_path / "c", [1, 2], {1: 0.1}, keep_latest=2)
    checkpoints.wait()
    checkpoints.add_metrics(2, {"early_stop": 7}, {"top1": 0.3})
    assert checkpoints.best() == 2
    checkpoints.close()
    with Checkpoints(tmp_path / "c") as again:
        assert again.best() == 2
        assert again.restore(abstract())[1]["early_stop"] == 7, "its digest is right"


def test_an_altered_field_of_the_metadata_is_damage(tmp_path):
    saved(tmp_path / "c", [1, 2], keep_latest=2).close()
    file = tmp_path / "c" / "2" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 4'))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(abstract())[1]["step"] == 1
        assert checkpoints.quarantined() == ["c-2"]
