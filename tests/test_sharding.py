"""Meshes and placement, on eight virtual devices."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vivit_jax import sharding
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.train import state_maker
from vivit_jax.train_step import make_train_step


def test_a_batch_is_split_over_the_data_axis_and_the_rows_of_a_process_cover_it():
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": len(jax.devices())}
    assert sharding.process_rows(mesh, 16) == (0, 16)
    placed = sharding.place_batch({"x": np.arange(32).reshape(16, 2)}, mesh, 16)["x"]
    assert placed.sharding.spec == P("data")
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, np.arange(32).reshape(16, 2))


def test_the_first_rule_that_matches_a_path_holds():
    mesh = sharding.make_mesh()
    tree = {"params": {"head": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}}, "step": np.zeros(())}
    rules = ((r"head/kernel$", P("data")), (r".*", P()))
    specs = sharding.state_sharding(mesh, tree, rules)
    assert specs["params"]["head"]["kernel"].spec == P("data")
    assert specs["params"]["head"]["bias"].spec == P()
    with pytest.raises(ValueError, match="no sharding rule matches params/head/bias"):
        sharding.state_sharding(mesh, tree, rules[:1])


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": 3}, "does not cover the 8 devices"),
        ({"rows": -1}, "mesh axes .*rows.* are not known"),
        ({"data": 0}, "sizes are positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, says):
    with pytest.raises(ValueError, match=says):
        sharding.make_mesh(axes)


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_one_that_they_do():
    with pytest.raises(ValueError, match=r"batch_size=12 is not divided by the 8 devices .* e\.g\. 16"):
        sharding.check_batch_size(sharding.make_mesh(), 12)


@pytest.mark.parametrize(
    "attention",
    ["spatiotemporal", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"],
)
def test_eight_devices_train_each_model_to_the_numbers_of_one(attention):
    config = ViViTConfig(
        hidden_size=16, num_layers=2, num_heads=2, mlp_dim=16, temporal_layers=1, attention=attention, num_frames=4,
        image_size=(8, 16), tubelet_size=(2, 4, 8), num_classes=3, dropout_rate=0.1, stochastic_depth_rate=0.2,
        dtype="float64",  # so that what differs is a mistake, not the order of sums
    )  # fmt: skip
    model, optimizer = ViViT(config), optax.sgd(0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (8, *config.video_shape), dtype=np.uint8),
        "label": {"label": rng.integers(0, 3, 8).astype(np.int32)},
        "mask": np.array([1] * 7 + [0], np.float32),
    }
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        with jax.enable_x64(True), jax.set_mesh(mesh):
            abstract, init = state_maker(model, optimizer, 0, mesh)
            state, step = init(), jax.jit(make_train_step(model.apply, optimizer, lambda s: 0.1))
            for _ in range(2):
                state, metrics = step(state, sharding.place_batch(batch, mesh, 8))
        assert jax.tree.structure(abstract) == jax.tree.structure(state)
        results.append((jax.tree.map(np.asarray, state.params), float(metrics["loss"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-10)
