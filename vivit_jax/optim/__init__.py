"""Learning-rate schedules and optimizers, as optax chains."""

from vivit_jax.optim.chain import Optimizer, make_optimizer
from vivit_jax.optim.config import OptimizerConfig
from vivit_jax.optim.layers import learning_rate_factors
from vivit_jax.optim.schedules import learning_rate_schedule
