"""Cost of models without data or accelerator: parameters, multiply-adds, memory.

    python -m vivit_jax.cost                                      the paper's tables and figures beside our programs
    python -m vivit_jax.cost --config=configs/k400_vivit_l.py     one experiment

Arguments are abstract (`jax.eval_shape`, `jit(...).lower`), so a ViViT-H allocates no memory.
"""

from vivit_jax.cost.counts import forward_count, train_count
from vivit_jax.models.flops import matrix_products
