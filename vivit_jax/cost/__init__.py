"""What a model costs, without data and without an accelerator: multiply-adds, parameters, memory.

    python -m vivit_jax.cost                                      the paper's tables and figures beside our programs
    python -m vivit_jax.cost --config=configs/k400_vivit_l.py     one experiment

Everything is abstract (`jax.eval_shape`, `jax.make_jaxpr`, `jit(...).lower`): a ViViT-H costs no memory here.
"""

from vivit_jax.cost.counts import forward_count, train_count
from vivit_jax.cost.memory import Memory, memory_of, peak_bytes, residual_bytes
from vivit_jax.models.flops import matrix_products

__all__ = ["Memory", "forward_count", "matrix_products", "memory_of", "peak_bytes", "residual_bytes", "train_count"]
