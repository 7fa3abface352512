"""Meshes, sharding rules and placement of batches on eight virtual devices; the models are in `test_models.py`."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.helpers.small_models import MODELS, small_config
from vivit_jax import sharding
from vivit_jax.models import ViViTConfig, abstract_params

VIT_B = ViViTConfig.from_name("ViViT-B/16x2", attention="factorised_encoder")


def test_batch_is_split_over_data_and_fsdp():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert sharding.process_rows(mesh, 16) == (0, 16)
    placed = sharding.place_batch({"x": np.arange(32).reshape(16, 2)}, mesh, 16)["x"]
    assert placed.sharding.spec == P(("data", "fsdp"))
    assert {s.data.shape for s in placed.addressable_shards} == {(4, 2)}
    np.testing.assert_array_equal(placed, np.arange(32).reshape(16, 2))


def test_leaves_without_a_rule_are_copied():
    mesh = sharding.make_mesh({"fsdp": 8})
    tree = {"params": {"head": {"kernel": np.zeros((8, 2)), "scale": np.zeros(8)}}, "step": np.zeros(())}
    specs = sharding.state_sharding(mesh, tree)
    assert specs["params"]["head"]["kernel"].spec == P("fsdp")
    assert specs["params"]["head"]["scale"].spec == specs["step"].spec == P()


def test_parameter_specs_of_vit_b():
    params = abstract_params(VIT_B)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    actual = sharding.state_sharding(mesh, {"params": params})["params"]
    layer = actual["spatial_encoder"]["layers"]
    assert layer["attention"]["query"]["kernel"].spec == P(None, "fsdp", "tensor")  # [L, d, heads, head_dim]
    assert layer["attention"]["query"]["bias"].spec == P(None, "tensor")
    assert layer["attention"]["out"]["kernel"].spec == P(None, "tensor", None, "fsdp")  # [L, heads, head_dim, d]
    assert layer["attention"]["out"]["bias"].spec == P()
    assert layer["mlp"]["dense_in"]["kernel"].spec == P(None, None, ("tensor", "fsdp"))  # 3,072 / 2 > 768
    assert layer["mlp"]["dense_in"]["bias"].spec == P(None, "tensor")
    assert layer["mlp"]["dense_out"]["kernel"].spec == P(None, ("tensor", "fsdp"))
    assert layer["norm_mlp"]["scale"].spec == P()
    assert actual["tokenizer"]["kernel"].spec == P(None, None, None, None, "fsdp")
    assert actual["head"]["kernel"].spec == P("fsdp")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_optimizer_state_is_sharded_like_the_parameters(name):
    params = abstract_params(small_config(**MODELS[name], hidden_size=64, mlp_dim=256))
    mesh = sharding.make_mesh({"fsdp": 8})
    state = {"params": params, "opt_state": jax.eval_shape(optax.adamw(1e-3).init, params), "ema": params}
    actual = sharding.state_sharding(mesh, state)
    assert actual["opt_state"][0].mu == actual["opt_state"][0].nu == actual["ema"] == actual["params"]
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    share = jax.tree.map(lambda leaf, where: np.prod(where.shard_shape(leaf.shape)), state, actual)
    assert sum(jax.tree.leaves(share)) < whole / 8 * 1.15  # biases, norms and counters are whole


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "does not cover the 8 devices"),
        ({"tensor": 3}, "does not cover the 8 devices"),
        ({"rows": -1}, "mesh axes .*rows.* are not known"),
        ({"data": 0}, "sizes must be positive"),
        ({"fsdp": 2.0}, "sizes must be positive integers"),
        ({"fsdp": "2"}, "sizes must be positive integers"),
        ({"data": -1, "fsdp": -1}, "at most one can be -1"),
    ],
)
def test_make_mesh_rejects_bad_sizes(axes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(axes)


def test_indivisible_batch_size_is_rejected():
    with pytest.raises(ValueError, match=r"batch_size=12 is not divided by the 8 devices .* e\.g\. 16"):
        sharding.check_batch_size(sharding.make_mesh({"fsdp": 4}), 12)
    sharding.check_batch_size(sharding.make_mesh({"fsdp": 2, "tensor": 2}), 12)


@pytest.mark.parametrize(
    ("axes", "fields", "message"),
    [
        ({"tensor": 8}, {}, r"mesh\.tensor=8 does not divide num_heads, 12; .* can be 1, 2, 4, "),
        ({"tensor": 4}, {"attention": "factorised_dot_product"}, r"does not divide half of num_heads .*, 6; .* 1, 2,"),
        ({"tensor": 2}, {"mlp_dim": 3073}, "does not divide mlp_dim, 3073"),
        ({"fsdp": 8}, {"hidden_size": 36}, "does not divide hidden_size, 36"),
        ({"sequence": 8}, {"num_frames": 24}, r"mesh\.sequence=8 does not divide n_t, .*, 12; .* 1, 2, 4, "),
        ({"sequence": 8}, {"attention": "factorised_self_attention", "image_size": 32}, "more than the 2 x 2 tokens"),
        (
            {"sequence": 8},
            {"attention": "spatiotemporal", "image_size": 16, "num_frames": 8},
            "the tokens of a clip, 4",
        ),
    ],
)
def test_check_model_rejects_uneven_splits(axes, fields, message):
    config = ViViTConfig.from_name("ViViT-B/16x2", **{"attention": "factorised_encoder", **fields})
    with pytest.raises(ValueError, match=message):
        sharding.check_model(sharding.make_mesh(axes), config)


def test_check_model_accepts_even_splits():
    for attention in ("spatiotemporal", "factorised_encoder", "factorised_self_attention", "factorised_dot_product"):
        config = ViViTConfig.from_name("ViViT-B/16x2", attention=attention)
        for axes in ({"fsdp": 8}, {"tensor": 2, "sequence": 4}, {"sequence": 8}, {}):
            sharding.check_model(sharding.make_mesh(axes), config)


@dataclasses.dataclass(frozen=True)
class Device:
    """What `make_mesh` reads of a jax.Device: four devices per host, in disorder."""

    id: int
    platform: str = "gpu"
    slice_index: int = 0

    @property
    def process_index(self):
        return self.id // 4


def shuffled_devices(platform):
    return [Device(i, platform) for i in np.random.default_rng(0).permutation(16).tolist()]


def test_mesh_keeps_neighbours_on_one_host():
    """Four hosts of four devices: FSDP spans two hosts, tensor parallelism stays within one."""
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2}, shuffled_devices("gpu"))
    hosts = np.vectorize(lambda d: d.process_index)(mesh.devices)
    assert [set(group.ravel()) for group in hosts] == [{0, 1}, {2, 3}]
    assert (hosts[:, :, 0] == hosts[:, :, 1]).all()


@pytest.mark.parametrize("contiguous", [True, False])
def test_tpu_layout_is_used_if_rows_are_contiguous(contiguous, monkeypatch):
    def layout(shape, devices, **_):
        grid = np.array([Device(i, "tpu") for i in range(16)]).reshape(4, 4)
        return (grid[::-1] if contiguous else grid.T).reshape(shape)

    monkeypatch.setattr(sharding.mesh_utils, "create_device_mesh", layout)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2}, shuffled_devices("tpu"))
    ids = np.vectorize(lambda d: d.id)(mesh.devices).ravel().tolist()
    assert ids == (list(np.arange(16).reshape(4, 4)[::-1].ravel()) if contiguous else list(range(16)))
