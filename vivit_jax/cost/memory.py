"""Memory of training and inference, from the traced program alone: what autodiff keeps, and what is alive at once.

Bytes of arrays as the program names them, before the compiler: it fuses (less), copies for layout (more), and may
allocate what it likes. `compiled_bytes` asks it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from vivit_jax.cost.counts import abstract_batch, abstract_state
from vivit_jax.models import ViViT, ViViTConfig, abstract_params
from vivit_jax.train_step import make_train_step, normalise

# These write a buffer of their own even where an operand of that shape dies.
_NOT_IN_PLACE = frozenset({"dot_general", "conv_general_dilated", "transpose", "gather", "sort", "rev"})

# The same bytes under another shape, where the size does not change.
_BITCASTS = frozenset({"reshape", "squeeze", "expand_dims", "broadcast_in_dim"})


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one model, by what they hold.

    Attributes:
      parameters: of the model.
      gradients: as many, in the parameters' dtype.
      optimizer: optax's state.
      kept_per_clip: what the backward pass needs of the forward pass, for each clip of the batch; parameters aside.
      kept_once: the same that does not grow with the batch, such as the parameters' bfloat16 copies.
      recomputed_per_clip: what the layer whose turn it is needs while remat recomputes it; 0 without remat.
      inference_per_clip: the most that is alive at once in a forward pass, per clip; parameters aside.
      clip: one clip's pixels, as bytes.
    """

    parameters: int
    gradients: int
    optimizer: int
    kept_per_clip: int
    kept_once: int
    recomputed_per_clip: int
    inference_per_clip: int
    clip: int

    def training(self, clips: int) -> int:
        """Bytes on a device that holds all of the state and `clips` clips of the batch."""
        state = self.parameters + self.gradients + self.optimizer + self.kept_once
        return state + clips * (self.kept_per_clip + self.recomputed_per_clip + self.clip)

    def inference(self, clips: int) -> int:
        """Bytes on a device that holds the parameters and puts `clips` clips through them together."""
        return self.parameters + clips * (self.inference_per_clip + self.clip)


def memory_of(config: ViViTConfig, optimizer: optax.GradientTransformation) -> Memory:
    """The memory that a model asks for, nothing of it allocated.

    Args:
      config: the architecture; its dtype, remat and attention backend count, as do rates above 0 (their masks).
      optimizer: optax transformation.
    """
    with _widths(config):
        state = abstract_state(config, optimizer)
        one, two = residual_bytes(config, 1), residual_bytes(config, 2)
        alive = peak_bytes(config, 1)
        recomputed = 0
        kept = dataclasses.replace(config, remat="none", remat_temporal=None)
        if {config.remat, config.remat_temporal or config.remat} != {"none"}:
            recomputed = _one_layer(kept) - _one_layer(config)
    return Memory(
        parameters=tree_bytes(state.params),
        gradients=tree_bytes(state.params),
        optimizer=tree_bytes(state.opt_state),
        kept_per_clip=two - one,
        kept_once=2 * one - two,
        recomputed_per_clip=recomputed,
        inference_per_clip=alive,
        clip=math.prod(config.video_shape),
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves (arrays or `jax.ShapeDtypeStruct`s)."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def residual_bytes(config: ViViTConfig, clips: int) -> int:
    """What reverse-mode differentiation keeps of the forward pass of `clips` clips, in bytes.

    The leaves of the function that `jax.vjp` returns, each array once; parameters themselves are not counted, copies
    of them in another dtype are. remat, dtype and attention backend have their effect; a scan has none.

    Args:
      config: the architecture.
      clips: B, at least 1.
    """

    def kept(params: Any, video: jax.Array) -> list[jax.Array]:
        def logits(params: Any) -> Any:
            rngs = {"dropout": jax.random.key(0)}
            return ViViT(config).apply({"params": params}, video, train=True, rngs=rngs)

        return jax.tree.leaves(jax.vjp(logits, params)[1])

    with _widths(config):
        video = jax.ShapeDtypeStruct((clips, *config.video_shape), jnp.float32)
        program = jax.make_jaxpr(kept)(abstract_params(config), video).jaxpr
    given = set(program.invars)
    residuals = {v for v in program.outvars if not isinstance(v, core.Literal)} - given
    return sum(_bytes(v.aval) for v in residuals)


def peak_bytes(config: ViViTConfig, clips: int) -> int:
    """The most bytes alive at once in the forward pass of `clips` clips, parameters and the pixels aside.

    An estimate from the traced program in its order: an array lives from its making to its last use, and an operation
    element by element writes over an operand that dies there. The compiler's fusions are not foreseen (they need
    less), nor are its copies (more).

    Args:
      config: the architecture.
      clips: B, at least 1.
    """
    with _widths(config):
        video = jax.ShapeDtypeStruct((clips, *config.video_shape), jnp.uint8)
        program = jax.make_jaxpr(_forward(config))(abstract_params(config), video)
    return peak_of_program(program.jaxpr)


def peak_of_program(program: core.Jaxpr, owned: frozenset[core.Var] = frozenset()) -> int:
    """The most bytes alive at once of what a program makes, its results included; the rules are `peak_bytes`'.

    Args:
      program: a jaxpr, of `jax.make_jaxpr`.
      owned: arguments that count too, and that nobody needs when the program is done with them.
    """
    last = {v: i for i, eqn in enumerate(program.eqns) for v in eqn.invars if not isinstance(v, core.Literal)}
    last |= {v: len(program.eqns) for v in program.outvars if not isinstance(v, core.Literal)}
    alive = {v for v in owned if v in last}
    now = sum(_bytes(v.aval) for v in alive)
    peak = sum(_bytes(v.aval) for v in owned)
    for i, eqn in enumerate(program.eqns):
        dying = {v for v in eqn.invars if not isinstance(v, core.Literal) and last[v] == i and v in alive}
        made = sum(_bytes(v.aval) for v in eqn.outvars)
        freed = sum(_bytes(v.aval) for v in dying)
        if inner := _programs(eqn):
            during = max(_within(program, eqn, dying) for program in inner)
            if eqn.primitive.name == "scan":  # what it stacks up grows beside the body's own
                body = inner[0].outvars
                stacked = [v.aval for v, w in zip(eqn.outvars, body, strict=True) if v.aval.shape != w.aval.shape]
                during += sum(map(_bytes, stacked))
            peak = max(peak, now - freed + max(during, made))
        else:
            peak = max(peak, now + made - _written_over(eqn, dying))
        alive -= dying
        alive |= {v for v in eqn.outvars if last.get(v, -1) > i}
        now = sum(_bytes(v.aval) for v in alive)
    return peak


def compiled_bytes(config: ViViTConfig, optimizer: optax.GradientTransformation) -> tuple[int, int]:
    """The compiler's own temporaries for one clip on this machine's default device: (inference, training step).

    Compiles both programs as the config says (scan, remat, dtype, backend), from abstract arguments. Of a training step
    the temporaries hold activations, gradients and updates together.

    Args:
      config: the architecture, with a head.
      optimizer: optax transformation.

    Raises:
      RuntimeError: the backend does not tell.
    """
    with _widths(config):
        state, batch = abstract_state(config, optimizer), abstract_batch(config, 1)
        step = make_train_step(ViViT(config).apply, optimizer, optax.constant_schedule(0.1))
        programs = [
            jax.jit(_forward(config)).lower(state.params, batch["video"]),
            jax.jit(step, donate_argnums=0).lower(state, batch),
        ]
        found = [program.compile().memory_analysis() for program in programs]
    if any(analysis is None for analysis in found):
        raise RuntimeError(f"the backend {jax.default_backend()} does not say what memory its programs take")
    inference, training = (analysis.temp_size_in_bytes for analysis in found)
    return inference, training


def _forward(config: ViViTConfig) -> Any:
    return lambda params, video: ViViT(config).apply({"params": params}, normalise(video), train=False)


def _one_layer(config: ViViTConfig) -> int:
    """What one more layer of the (spatial) encoder keeps for one clip."""
    deeper, shallow = (dataclasses.replace(config, num_layers=layers) for layers in (2, 1))
    return residual_bytes(deeper, 1) - residual_bytes(shallow, 1)


def _widths(config: ViViTConfig) -> Any:
    return jax.enable_x64(config.dtype == "float64" or jax.config.jax_enable_x64)


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _within(program: core.Jaxpr, eqn: Any, dying: set[core.Var]) -> int:
    """The peak inside an operation that holds a program, the arguments that die there included."""
    owned: dict[core.Var, core.Var] = {}
    if len(program.invars) == len(eqn.invars):
        for inner, outer in zip(program.invars, eqn.invars, strict=True):
            if not isinstance(outer, core.Literal) and outer in dying and inner.aval.shape == outer.aval.shape:
                owned[inner] = outer
    held = sum(_bytes(v.aval) for v in dying - set(owned.values()))
    return held + peak_of_program(program, frozenset(owned))


def _written_over(eqn: Any, dying: set[core.Var]) -> int:
    """Bytes of results that take the place of an operand of their own shape and dtype."""
    if eqn.primitive.name in _NOT_IN_PLACE or len(eqn.outvars) != 1:
        return 0
    result = eqn.outvars[0].aval
    bitcast = eqn.primitive.name in _BITCASTS
    for operand in dying:
        same = operand.aval.size == result.size if bitcast else operand.aval.shape == result.shape
        if same and operand.aval.dtype == result.dtype:
            return _bytes(result)
    return 0


def _programs(eqn: Any) -> list[core.Jaxpr]:
    """The programs inside an operation: of a call one, of a loop its body, of a branch all."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
