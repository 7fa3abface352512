"""The steps of `vivit_jax.train`, lowered with abstract state and batch for devices that need not exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vivit_jax import optim, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.cost.counts import abstract_batch, train_count
from vivit_jax.models import ViViT, abstract_params
from vivit_jax.train_step import TrainState, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on the devices of a slice.

    Attributes:
      experiment: the config.
      heads: {head: classes} of its data set.
      mesh: the config's mesh over the slice's devices.
    """

    experiment: Experiment
    heads: Mapping[str, int]
    mesh: Any

    @classmethod
    def on(cls, experiment: Experiment, heads: Mapping[str, int], devices: Sequence[Any]) -> Target:
        """Builds the config's mesh on these devices.

        Raises:
          ValueError: the mesh does not cover the devices or does not divide the model.
        """
        mesh = sharding.make_mesh(experiment.mesh, devices)
        sharding.check_model(mesh, experiment.model_config(heads))
        return cls(experiment, heads, mesh)

    @property
    def batch_shards(self) -> int:
        """Number of shards of the batch."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def clips_per_shard(self, batch_size: int) -> int:
        """Returns the clips in each shard of a global batch.

        Raises:
          ValueError: the batch does not divide evenly.
        """
        sharding.check_batch_size(self.mesh, batch_size, "batch_size")
        return batch_size // self.batch_shards

    def lower_train(self, clips: int) -> Any:
        """Lowers the training step with `clips` clips per batch shard."""
        experiment = self.experiment
        model = ViViT(experiment.model_config(self.heads))
        # Neither the length of the run nor the schedule's shape makes a difference to memory.
        schedule = optim.learning_rate_schedule(
            experiment.optimizer, total_steps=10**9, steps_per_epoch=1e3, batch_size=experiment.batch_size
        )
        optimizer = optim.make_optimizer(experiment.optimizer, schedule)
        state = jax.eval_shape(
            lambda params: TrainState.create(params, optimizer, experiment.optimizer.ema_decay),
            abstract_params(model.config),
        )
        shardings = sharding.state_sharding(self.mesh, state)
        step = jax.jit(
            make_train_step(model.apply, optimizer, schedule, **experiment.step_options()),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(self.mesh)),
        )
        with jax.set_mesh(self.mesh):
            return step.lower(_placed(state, shardings), self._batch(model, clips * self.batch_shards))

    def lower_eval(self, videos: int) -> Any:
        """Lowers the evaluation step with `videos` videos per batch shard, all views."""
        model = ViViT(self.experiment.model_config(self.heads))
        params = abstract_params(model.config)
        params = _placed(params, sharding.state_sharding(self.mesh, {"params": params})["params"])
        batch = self._batch(model, videos * self.batch_shards)
        video, views = batch["video"], self.experiment.evaluation.views
        shape = (video.shape[0], views, *video.shape[1:])
        batch = {**batch, "video": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=video.sharding)}
        step = jax.jit(make_eval_step(model.apply), out_shardings=sharding.replicated(self.mesh))
        with jax.set_mesh(self.mesh):
            return step.lower(params, batch)

    def multiply_adds(self, clips: int) -> float:
        """Returns the multiply-adds of a training step on all devices, by XLA's count of the unrolled program."""
        optimizer = optim.make_optimizer(self.experiment.optimizer, lambda step: 0.1)
        each, update = train_count(self.experiment.model_config(self.heads), optimizer)
        return each * clips * self.batch_shards + update

    def _batch(self, model: ViViT, clips: int) -> Mapping[str, Any]:
        batch = abstract_batch(model.config, clips)
        return _placed(batch, jax.tree.map(lambda _: sharding.batch_sharding(self.mesh), batch))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
