"""The only room that knows meshes and partition specs: axes, rules, placement of batch, state and activations.

One program runs on one device or on a pod: `jax.jit` over one named mesh with four axes, any of which may be 1:

* `data`: the batch, parameters copied (data parallel);
* `fsdp`: the batch again, parameters and the optimizer's state split (fully sharded data parallel); with `data` above 1
  it is hybrid: split within a group of neighbours, copied from group to group;
* `tensor`: attention heads and the MLP's hidden layer (Megatron-LM, arXiv:1909.08053, section 3);
* `sequence`: the tokens of Model 1, the frames of Models 2 to 4.

The numbers of a run do not depend on the mesh, but for the order of sums.
"""

from vivit_jax.sharding.activations import constrain, on_own_rows, on_own_shares, ways
from vivit_jax.sharding.checks import check_model
from vivit_jax.sharding.mesh import (
    AXES,
    batch_sharding,
    check_batch_size,
    make_mesh,
    place_batch,
    process_rows,
    replicated,
)
from vivit_jax.sharding.rules import RULES, state_sharding

__all__ = [
    "AXES",
    "RULES",
    "batch_sharding",
    "check_batch_size",
    "check_model",
    "constrain",
    "make_mesh",
    "on_own_rows",
    "on_own_shares",
    "place_batch",
    "process_rows",
    "replicated",
    "state_sharding",
    "ways",
]
