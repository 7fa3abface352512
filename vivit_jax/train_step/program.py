"""The jitted train step with the abstract state that it updates, for a model on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.optim import Optimizer
from vivit_jax.train_step.step import TrainState, make_train_step


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """The jitted train step of a model, and the state that it updates. Nothing is allocated or compiled yet.

    The mesh may be over devices that are not attached (`jax.experimental.topologies`): `state` and `step.lower` work
    there too. Optimizer, schedule and EMA decay are those of `make_train_step`.
    """

    model: Any  # Flax module; `model.config.video_shape` is the shape of a clip
    optimizer: optax.GradientTransformation | Optimizer
    schedule: optax.Schedule
    ema_decay: float
    state: TrainState  # of `jax.ShapeDtypeStruct`, with shardings where there is a mesh
    step: Any  # (state, batch) -> (state, metrics), jitted; `state` is donated
    make_step: Callable[[Any], Any] | None = None  # model -> its `step`

    def with_model(self, model: Any) -> Self:
        """Returns the program of a model that has the same parameters, but computes in another way."""
        return dataclasses.replace(self, model=model, step=self.make_step(model))

    def init_state(self, seed: int) -> TrainState:
        """Returns the state before the first step, with random parameters. The values do not depend on the mesh."""
        return jax.jit(_initializer(self), out_shardings=self._shardings())(jax.random.key(seed))

    def state_from_params(self, params: Any) -> TrainState:
        """Returns the state before the first step, with these parameters (arrays on the host or on devices)."""
        shardings = self._shardings()
        create = jax.jit(lambda p: TrainState.create(p, self.optimizer, self.ema_decay), out_shardings=shardings)
        return create(jax.device_put(params, shardings.params))

    def _shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def build_train_program(
    model: Any,
    optimizer: optax.GradientTransformation | Optimizer,
    schedule: optax.Schedule,
    mesh: Mesh | None = None,
    *,
    ema_decay: float = 0.0,
    **options: Any,
) -> TrainProgram:
    """Builds a `TrainProgram` with the options of `make_train_step`; `mesh` None: one device, no shardings."""
    program = TrainProgram(model, optimizer, schedule, ema_decay, state=None, step=None)
    init = _initializer(program)
    state = jax.eval_shape(lambda seed: init(jax.random.key(seed)), 0)
    out_shardings = None
    if mesh is not None:
        shardings = sharding.state_sharding(mesh, state)
        state = sharding.abstract_like(state, shardings)
        out_shardings = (shardings, sharding.replicated(mesh))

    def make_step(model: Any) -> Any:
        step = make_train_step(model.apply, optimizer, schedule, ema_decay=ema_decay, **options)
        return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)

    return dataclasses.replace(program, state=state, make_step=make_step, step=make_step(model))


def _initializer(program: TrainProgram) -> Callable[[jax.Array], TrainState]:
    def init(key: jax.Array) -> TrainState:
        params = program.model.init(key, jnp.zeros((1, *program.model.config.video_shape)))["params"]
        return TrainState.create(params, program.optimizer, program.ema_decay)

    return init
