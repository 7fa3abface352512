"""Meshes, rules and placement, on eight virtual devices; what models make of them is in `test_sharding_models`."""

import types

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers.small_models import MODELS, small_config
from vivit_jax import sharding
from vivit_jax.models import ViViTConfig, abstract_params
from vivit_jax.sharding import mesh as layout

VIT_B = ViViTConfig.from_name("ViViT-B/16x2", attention="factorised_encoder")


def test_a_batch_is_split_over_data_and_fsdp_and_the_rows_of_a_process_cover_it():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert sharding.process_rows(mesh, 16) == (0, 16)
    placed = sharding.place_batch({"x": np.arange(32).reshape(16, 2)}, mesh, 16)["x"]
    assert placed.sharding.spec == P(("data", "fsdp"))
    assert {s.data.shape for s in placed.addressable_shards} == {(4, 2)}
    np.testing.assert_array_equal(placed, np.arange(32).reshape(16, 2))


def test_the_first_rule_that_matches_a_path_holds():
    mesh = sharding.make_mesh({"fsdp": 8})
    tree = {"params": {"head": {"kernel": np.zeros((8, 2)), "scale": np.zeros(8)}}, "step": np.zeros(())}
    rules = ((r"head/kernel$", ("width", "outputs")), (r".*", ()))
    specs = sharding.state_sharding(mesh, tree, rules)
    assert specs["params"]["head"]["kernel"].spec == P("fsdp")
    assert specs["params"]["head"]["scale"].spec == P()
    with pytest.raises(ValueError, match="no sharding rule matches params/head/scale"):
        sharding.state_sharding(mesh, tree, rules[:1])


def test_vit_b_is_split_by_heads_and_columns_and_by_the_largest_dimension():
    params = abstract_params(VIT_B)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    found = sharding.state_sharding(mesh, {"params": params})["params"]
    layer = found["spatial_encoder"]["layers"]
    assert layer["attention"]["query"]["kernel"].spec == P(None, "fsdp", "tensor")  # [L, d, heads, head_dim]
    assert layer["attention"]["query"]["bias"].spec == P(None, "tensor")
    assert layer["attention"]["out"]["kernel"].spec == P(None, "tensor", None, "fsdp")  # [L, heads, head_dim, d]
    assert layer["attention"]["out"]["bias"].spec == P()
    assert layer["mlp"]["dense_in"]["kernel"].spec == P(None, None, ("tensor", "fsdp"))  # 3,072 / 2 > 768
    assert layer["mlp"]["dense_in"]["bias"].spec == P(None, "tensor")
    assert layer["mlp"]["dense_out"]["kernel"].spec == P(None, ("tensor", "fsdp"))
    assert layer["norm_mlp"]["scale"].spec == P()
    assert found["tokenizer"]["kernel"].spec == P(None, None, None, None, "fsdp")
    assert found["head"]["kernel"].spec == P("fsdp")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_optimizer_state_lies_as_the_parameters_do_and_fsdp_leaves_a_device_its_share(name):
    params = abstract_params(small_config(**MODELS[name], hidden_size=64, mlp_dim=256))
    mesh = sharding.make_mesh({"fsdp": 8})
    state = {"params": params, "opt_state": jax.eval_shape(optax.adamw(1e-3).init, params), "ema": params}
    found = sharding.state_sharding(mesh, state)
    assert found["opt_state"][0].mu == found["opt_state"][0].nu == found["ema"] == found["params"]
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    share = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape)), state, found)
    assert sum(jax.tree.leaves(share)) < whole / 8 * 1.15  # biases, norms and counters are whole


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": 3}, "does not cover the 8 devices"),
        ({"tensor": 3}, "does not cover the 8 devices"),
        ({"rows": -1}, "mesh axes .*rows.* are not known"),
        ({"data": 0}, "sizes are positive"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, says):
    with pytest.raises(ValueError, match=says):
        sharding.make_mesh(axes)


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_one_that_they_do():
    with pytest.raises(ValueError, match=r"batch_size=12 is not divided by the 8 devices .* e\.g\. 16"):
        sharding.check_batch_size(sharding.make_mesh({"fsdp": 4}), 12)
    sharding.check_batch_size(sharding.make_mesh({"fsdp": 2, "tensor": 2}), 12)


@pytest.mark.parametrize(
    ("axes", "fields", "says"),
    [
        ({"tensor": 8}, {}, r"mesh\.tensor=8 does not divide num_heads, 12; .* can be 1, 2, 4, "),
        ({"tensor": 4}, {"attention": "factorised_dot_product"}, r"does not divide half of num_heads .*, 6; .* 1, 2,"),
        ({"tensor": 2}, {"mlp_dim": 3073}, "does not divide mlp_dim, 3073"),
        ({"fsdp": 8}, {"hidden_size": 36}, "does not divide hidden_size, 36"),
        ({"sequence": 8}, {"num_frames": 24}, r"mesh\.sequence=8 does not divide n_t, .*, 12; .* 1, 2, 4, "),
        ({"sequence": 8}, {"attention": "factorised_self_attention", "image_size": 32}, "more than the 2 x 2 places"),
        (
            {"sequence": 8},
            {"attention": "spatiotemporal", "image_size": 16, "num_frames": 8},
            "the tokens of a clip, 4",
        ),
    ],
)
def test_a_model_that_the_mesh_does_not_divide_is_refused_with_sizes_that_do(axes, fields, says):
    config = ViViTConfig.from_name("ViViT-B/16x2", **{"attention": "factorised_encoder", **fields})
    with pytest.raises(ValueError, match=says):
        sharding.check_model(sharding.make_mesh(axes), config)


def test_models_that_the_mesh_divides_are_not_refused():
    for attention in ("spatiotemporal", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"):
        config = ViViTConfig.from_name("ViViT-B/16x2", attention=attention)
        for axes in ({"fsdp": 8}, {"tensor": 2, "sequence": 4}, {"sequence": 8}, {}):
            sharding.check_model(sharding.make_mesh(axes), config)


def test_neighbours_share_parameters_and_each_process_feeds_one_run_of_rows():
    """Four hosts of four devices, listed in disorder: FSDP stays within two hosts, tensor parallelism within one."""
    host = lambda i: types.SimpleNamespace(id=i, process_index=i // 4, slice_index=0, platform="gpu")  # noqa: E731
    devices = [host(i) for i in np.random.default_rng(0).permutation(16)]
    grid = layout._layout((2, 4, 2, 1), devices)
    hosts = np.vectorize(lambda d: d.process_index)(grid)
    assert [set(group.ravel()) for group in hosts] == [{0, 1}, {2, 3}]
    assert (hosts[:, :, 0] == hosts[:, :, 1]).all()
    assert layout._contiguous(grid)
    assert not layout._contiguous(grid.reshape(4, 4).T.reshape(2, 4, 2, 1))
