"""Learning-rate schedules and optimizers, as optax chains.

The published recipe (appendix) is the default of `OptimizerConfig`: SGD with momentum 0.9, cosine decay after a linear
warm-up over 2.5 epochs, gradients clipped at global norm 1, no weight decay.
"""

from vivit_jax.optim.chain import Optimizer, make_optimizer
from vivit_jax.optim.config import OptimizerConfig
from vivit_jax.optim.layers import learning_rate_factors
from vivit_jax.optim.schedules import learning_rate_schedule
