"""Meshes and placement, on eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vivit_jax import sharding


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
