"""Cost of models without data or accelerator: parameters, multiply-adds, memory, counted with abstract arguments."""

from vivit_jax.cost.counts import forward_count, train_count
from vivit_jax.models.flops import matrix_products
