"""Device meshes and partition specs: axes, rules for parameters, placement of batches and of activations.

One program runs on one device or on a pod: `jax.jit` over one named mesh with four axes, any of which may be 1:

* `data`: splits the batch, copies parameters (data parallelism);
* `fsdp`: splits the batch, the parameters and the optimizer's state (fully sharded data parallelism). With `data` above
  1 it is hybrid: split within a group of neighbouring devices, copied between groups;
* `tensor`: splits attention heads and the MLP's hidden layer (Megatron-LM, arXiv:1909.08053, section 3);
* `sequence`: splits the tokens of Model 1 and the frames of Models 2 to 4.

The mesh changes the numbers of a run only by the order of floating-point sums.
"""

from vivit_jax.sharding.mesh import (
    batch_sharding,
    check_batch_size,
    check_model,
    complete_axes,
    constrain,
    make_mesh,
    num_shards,
    place_batch,
    process_rows,
    replicated,
    shard_map_batch,
    shard_map_logical,
)
from vivit_jax.sharding.rules import abstract_like, state_sharding
