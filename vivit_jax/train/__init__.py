"""The host loop of a training run: set-up, train loop, periodic evaluation, logs and checkpoints."""

from vivit_jax.train.loop import train
