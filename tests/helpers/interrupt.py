"""Watching and interrupting a training run at a given step."""

import contextlib
import signal
from unittest import mock

import numpy as np

from vivit_jax import sharding


@contextlib.contextmanager
def on_batch(callback):
    """Inside, calls `callback(step, batch)` before each training batch is placed on the devices; steps count from 1."""
    place_batch, steps = sharding.place_batch, []

    def place(batch, *rest):
        if np.ndim(batch["video"]) == 5:  # of evaluation: 6, with the views
            steps.append(len(steps) + 1)
            callback(steps[-1], batch)
        return place_batch(batch, *rest)

    with mock.patch.object(sharding, "place_batch", place):
        yield


@contextlib.contextmanager
def recorded_batches():
    """Yields a list that receives the `index` of every training batch."""
    indices = []
    with on_batch(lambda step, batch: indices.append(batch["index"].tolist())):
        yield indices


def killed_after(steps):
    """Inside, KeyboardInterrupt replaces the training step after so many."""

    def kill(step, batch):
        if step == steps + 1:
            raise KeyboardInterrupt

    return on_batch(kill)


def sigterm_in_evaluation():
    """Inside, the process receives SIGTERM in each evaluation, before its second batch."""
    batches = []

    def place(batch, *rest):
        if np.ndim(batch["video"]) == 6:
            batches.append(1)
            if len(batches) == 2:
                signal.raise_signal(signal.SIGTERM)
        return place_batch(batch, *rest)

    place_batch = sharding.place_batch
    return mock.patch.object(sharding, "place_batch", place)


def sigterm_at(steps):
    """Inside, the process receives SIGTERM before this training step."""
    return on_batch(lambda step, batch: signal.raise_signal(signal.SIGTERM) if step == steps else None)
