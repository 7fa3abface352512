"""Learning-rate schedules and optimizers: optax chains from plain arguments.

The published recipe (the paper's appendix): SGD with momentum 0.9, cosine decay after a linear warm-up over 2.5 epochs,
gradients clipped at global norm 1, no weight decay. `OptimizerConfig()` is that recipe.

`config` names what there is, `schedules` the learning rate at each step, `chain` puts the optimizer together; `paths`
picks parameters by name, `layers` knows how deep they lie and that layers are stacked.
"""

from vivit_jax.optim.chain import Optimizer, make_optimizer
from vivit_jax.optim.config import KERNELS, OPTIMIZERS, SCHEDULES, OptimizerConfig
from vivit_jax.optim.layers import learning_rate_factors
from vivit_jax.optim.paths import path_mask, trained_mask
from vivit_jax.optim.schedules import learning_rate_schedule

__all__ = [
    "KERNELS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Optimizer",
    "OptimizerConfig",
    "learning_rate_factors",
    "learning_rate_schedule",
    "make_optimizer",
    "path_mask",
    "trained_mask",
]
