"""Learning-rate schedules and optimizers, as optax chains, and their config; masks and layer-wise rates by path.

The leaves under `*/layers/` hold all layers of an encoder, [L, ...], while optax treats an array as one layer.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vivit_jax.utils.checks import at_least, one_of, whole, within
from vivit_jax.utils.trees import path_name

OPTIMIZERS = ("sgd", "adamw", "lamb", "lion")
SCHEDULES = ("cosine", "linear", "constant", "step", "rsqrt")
UNITS = ("steps", "epochs", "examples")

# Matches every parameter but biases, LayerNorm scales, position embeddings and class tokens.
KERNELS = r"(^|/)kernel$"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule of a run. The defaults are the paper's recipe (appendix).

    Patterns are regular expressions, searched in paths such as 'encoder/layers/mlp/dense_in/kernel'.

    Attributes:
      schedule: after the warm-up: 'cosine', 'linear' (both to `end_learning_rate`), 'constant', 'step' (times
        `step_decay_factor` at each of `schedule_steps`) or 'rsqrt' (see `rsqrt_timescale`).
      warmup_steps, warmup_examples: the warm-up in optimizer steps or in clips; replaces `warmup_epochs`.
      schedule_steps, step_decay_factor: the steps of the run, ascending, at which 'step' applies a factor in (0, 1).
      rsqrt_timescale: t > 0 of 'rsqrt': the learning rate s steps after the warm-up is base / sqrt(1 + s / t)
        (arXiv:2106.04560; big_vision's `create_learning_rate_schedule`). None: 10,000 steps.
      b1, b2, eps: of all optimizers but SGD: decay of the moments, in [0, 1), and epsilon, > 0. b2=None: as published,
        0.999, or 0.99 for Lion, which has no epsilon.
      weight_decay, decay_pattern: decoupled weight decay, times the learning rate, of the parameters with this pattern.
      layer_decay: layer-wise learning-rate decay, in (0, 1], see `optim.learning_rate_factors`; 1 turns it off.
      accumulate_steps: microbatches per batch, processed one after another to save memory; must divide the batch size.
    """

    name: str = "sgd"  # 'sgd', 'adamw' (arXiv:1711.05101), 'lamb' (arXiv:1904.00962) or 'lion' (arXiv:2302.06675)
    learning_rate: float = 0.1  # at the end of the warm-up; > 0
    schedule: str = "cosine"
    warmup_epochs: float = 2.5  # epochs of linear warm-up from 0, less than the run has
    warmup_steps: int | None = None
    warmup_examples: int | None = None
    end_learning_rate: float = 0.0  # at the last step of 'cosine' and 'linear'
    schedule_steps: tuple[float, ...] = ()
    step_decay_factor: float = 0.1
    rsqrt_timescale: float | None = None
    schedule_unit: str = "steps"  # of `schedule_steps` and `rsqrt_timescale`: 'steps', 'epochs' or 'examples'
    momentum: float = 0.9  # of SGD, in [0, 1); no Nesterov
    b1: float = 0.9
    b2: float | None = None
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_pattern: str = KERNELS
    clip_norm: float = 1.0  # upper limit of the global norm of the trained parameters' gradient; 0 turns clipping off
    layer_decay: float = 1.0
    head_learning_rate: float = 1.0  # learning rate of the heads in multiples of the schedule's, > 0
    frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained: no update, decay or optimizer state
    accumulate_steps: int = 1
    ema_decay: float = 0.0  # d in [0, 1) of the exponential moving average of the parameters; 0 turns it off
    sam_rho: float = 0.0  # radius of sharpness-aware minimisation (arXiv:2010.01412); 0 turns it off

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule_steps", tuple(self.schedule_steps))
        object.__setattr__(self, "frozen", (self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen))
        one_of("optimizer", self, name=OPTIMIZERS, schedule=SCHEDULES, schedule_unit=UNITS)
        within("optimizer", self, "(0, inf)", "learning_rate", "head_learning_rate", "eps", "rsqrt_timescale")
        not_negative = ("warmup_epochs", "warmup_steps", "warmup_examples", "end_learning_rate")
        within("optimizer", self, "[0, inf)", *not_negative, "weight_decay", "clip_norm", "sam_rho")
        within("optimizer", self, "[0, 1)", "momentum", "b1", "b2", "ema_decay")
        within("optimizer", self, "(0, 1]", "layer_decay", hint="1 turns it off")
        at_least("optimizer", self, accumulate_steps=1)
        whole("optimizer", self, "accumulate_steps")
        self._check_schedule()
        for field, patterns in (("decay_pattern", (self.decay_pattern,)), ("frozen", self.frozen)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise ValueError(f"optimizer.{field}={pattern!r} is not a regular expression: {error}") from error

    def _check_schedule(self) -> None:
        if self.warmup_steps is not None and self.warmup_examples is not None:
            both = f"warmup_steps={self.warmup_steps} and warmup_examples={self.warmup_examples}"
            raise ValueError(f"optimizer.{both} both set the length of the warm-up; give one")
        for field, default, schedules in (
            ("end_learning_rate", 0.0, ("cosine", "linear")),
            ("schedule_steps", (), ("step",)),
            ("rsqrt_timescale", None, ("rsqrt",)),
        ):
            if self.schedule not in schedules and getattr(self, field) != default:
                unused = f"is not used by schedule={self.schedule!r}, only by {' and '.join(schedules)}"
                raise ValueError(f"optimizer.{field}={getattr(self, field)} {unused}; leave it at {default}")
        if self.schedule != "step":
            return
        within("optimizer", self, "(0, 1)", "step_decay_factor")
        steps = self.schedule_steps
        if not (steps and steps[0] > 0 and all(a < b for a, b in itertools.pairwise(steps))):
            rule = f"the {self.schedule_unit} at which the learning rate changes, ascending, each greater than 0"
            raise ValueError(f"optimizer.schedule_steps={steps} must give {rule}")


def learning_rate_schedule(
    config: OptimizerConfig, *, total_steps: int, steps_per_epoch: float, batch_size: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step: linear warm-up from 0, then decay over the remaining steps.

    At step s < w of the warm-up (s = 0, 1, ...) it is base * s / w. `total_steps` of the whole run; `steps_per_epoch`
    is examples in the split / batch size; `batch_size` is that of the global batch. Raises ValueError where the warm-up
    takes the whole run, or `schedule_steps` lie in the warm-up, beyond the run or on the same step.
    """
    steps_in = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / batch_size}
    unit = next((unit for unit in ("steps", "examples") if getattr(config, f"warmup_{unit}") is not None), "epochs")
    length = getattr(config, f"warmup_{unit}")
    warmup = round(length * steps_in[unit])
    if warmup >= total_steps and warmup > 0:
        problem = f"optimizer.warmup_{unit}={length} is {warmup} steps, but the run has only {total_steps}"
        raise ValueError(f"{problem}; train for longer or warm up for fewer {unit}")
    base, end, rest = config.learning_rate, config.end_learning_rate, total_steps - warmup
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(base, rest, alpha=end / base)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(base, end, rest)
    elif config.schedule == "step":
        steps = [round(value * steps_in[config.schedule_unit]) for value in config.schedule_steps]
        if len(set(steps)) < len(steps) or steps[0] <= warmup or steps[-1] >= total_steps:
            given = f"optimizer.schedule_steps={config.schedule_steps} {config.schedule_unit} are the steps {steps}"
            ends = f"after the end of the warm-up, {warmup}, and before that of the run, {total_steps}"
            raise ValueError(f"{given}; they must be ascending, {ends}")
        decay = optax.piecewise_constant_schedule(base, {step - warmup: config.step_decay_factor for step in steps})
    elif config.schedule == "rsqrt":
        given = config.rsqrt_timescale
        timescale = 10_000 if given is None else given * steps_in[config.schedule_unit]  # big_vision's default

        def decay(step: jax.Array) -> jax.Array:
            """base / sqrt(1 + step / timescale): flat at first, then as 1 / sqrt(step) (arXiv:2106.04560, 3.5)."""
            # join_schedules also evaluates it at negative steps, before its boundary, and discards the result.
            return base / jnp.sqrt(1.0 + jnp.maximum(step, 0) / timescale)

    else:
        decay = optax.constant_schedule(base)
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, base, warmup), decay], [warmup])


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation that also tells which parameters it trains, so that only these are differentiated.

    `trained` maps parameters to a tree of bools; others get zero updates. `head_learning_rate`: times the schedule's.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    trained: Callable[[Any], Any]
    head_learning_rate: float = 1.0


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> Optimizer:
    """Chains gradient clipping by global norm, an optimizer (SGD with momentum, AdamW, LAMB, Lion) and weight decay.

    The norm is that of the global gradient of the trained parameters (the reference clips on each device before it
    averages). Accumulation, EMA and SAM belong to the train step.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    transformation = optax.chain(clip, *_rule(config, schedule))
    trained = trained_mask(config.frozen)
    if config.frozen:
        transformation = optax.partition(
            {"trained": transformation, "frozen": optax.set_to_zero()},
            lambda params: jax.tree.map(lambda is_trained: "trained" if is_trained else "frozen", trained(params)),
        )
    if config.layer_decay < 1 or config.head_learning_rate != 1:

        def scale(updates: Any, params: Any) -> Any:
            factors = learning_rate_factors(updates, config.layer_decay, config.head_learning_rate)
            return jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors)

        # After the partition, because depths count frozen layers too.
        transformation = optax.chain(transformation, optax.stateless(scale))

    def init(params: Any) -> Any:
        if config.weight_decay:
            check_found(config.decay_pattern, params, "optimizer.decay_pattern")
        return transformation.init(params)

    return Optimizer(init, transformation.update, trained, config.head_learning_rate)


def _rule(config: OptimizerConfig, schedule: optax.Schedule) -> tuple[optax.GradientTransformation, ...]:
    """The transformations from the clipped gradient to the update."""
    # As published; Lion: arXiv:2302.06675, section 4.
    b2 = config.b2 if config.b2 is not None else 0.99 if config.name == "lion" else 0.999
    moments = {"b1": config.b1, "b2": b2}
    decay = {"weight_decay": config.weight_decay, "mask": path_mask(config.decay_pattern)}
    if config.name == "adamw":
        return (optax.adamw(schedule, eps=config.eps, **moments, **decay),)
    if config.name == "lion":
        return (optax.lion(schedule, **moments, **decay),)
    if config.name == "lamb":
        return (
            optax.scale_by_adam(eps=config.eps, **moments),
            optax.add_decayed_weights(**decay),
            scale_by_trust_ratio(),
            optax.scale_by_learning_rate(schedule),
        )
    return (
        optax.trace(decay=config.momentum, nesterov=False) if config.momentum else optax.identity(),
        # After the momentum: decoupled, as in AdamW.
        optax.add_decayed_weights(**decay) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


ENCODERS = ("encoder", "spatial_encoder", "temporal_encoder")  # in the order of the forward pass


def is_stacked(name: str) -> bool:
    """Whether the parameter at a path holds all layers of an encoder, [L, ...]."""
    return "layers" in name.split("/")[:-1]


def is_head(name: str) -> bool:
    """Whether the parameter at a path belongs to a classification head, `head` or `head_NAME`."""
    return name.split("/")[0].split("_")[0] == "head"


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Scales by LAMB's trust ratio ||w|| / ||u|| (arXiv:1904.00962, algorithm 2), layer by layer in stacked leaves."""
    ratio = optax.scale_by_trust_ratio()

    def one_layer(update: jax.Array, param: jax.Array) -> jax.Array:
        return ratio.update(update, optax.EmptyState(), param)[0]

    def scale(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
        return (jax.vmap(one_layer) if is_stacked(path_name(path)) else one_layer)(update, param)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params))


def learning_rate_factors(params: Any, layer_decay: float, head: float = 1.0) -> Any:
    """Returns the learning rate of each parameter in multiples of the schedule's.

    Layer-wise decay as in ELECTRA and BEiT (arXiv:2003.10555, appendix A; arXiv:2106.08254, section 3): the factor at
    depth i of L layers is decay^(L + 1 - i). Depths are 0 for the tokenizer; 1 to L for the layers, in Model 2 those of
    the spatial encoder, then those of the temporal one; one less than its first layer for an encoder's class token and
    position embedding, one more than its last layer for its LayerNorm; L + 1 for heads and pre-logits layer.

    `layer_decay` is in (0, 1]; at 1 the model can be any. `head` is an additional factor for the heads, > 0. The
    result is a tree of float64 scalars, and of [L, 1, ...] for stacked leaves. Raises ValueError, unless `layer_decay`
    is 1, for a parameter whose depth is not known, as that of a decoder.
    """
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
    sizes = {name.split("/")[0]: leaf.shape[0] for name, leaf in leaves if is_stacked(name)}
    layers = {encoder: sizes[encoder] for encoder in ENCODERS if encoder in sizes} if layer_decay < 1 else {}
    top = sum(layers.values()) + 1

    def factor(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
        name = path_name(path)
        factor = layer_decay ** (float(top) - _depth(name, layers)) if layer_decay < 1 else np.ones(())
        factor = np.asarray(factor * head if is_head(name) else factor)
        return factor.reshape(-1, *[1] * (leaf.ndim - 1)) if factor.ndim else factor

    return jax.tree_util.tree_map_with_path(factor, params)


def _depth(name: str, layers: Mapping[str, int]) -> np.ndarray:
    """The depth of a parameter, or of each layer of a stacked one."""
    module, *rest = name.split("/")
    if module == "tokenizer":
        return np.array(0)
    if is_head(name) or module == "pre_logits":
        return np.array(sum(layers.values()) + 1)
    if module not in layers:
        known = f"tokenizer, {', '.join(ENCODERS)}, pre_logits and heads"
        raise ValueError(f"optimizer.layer_decay does not know the depth of {name}, only of {known}; set it to 1")
    below = sum(layers[encoder] for encoder in list(layers)[: list(layers).index(module)])
    if is_stacked(name):
        return below + 1 + np.arange(layers[module])
    return np.array(below + layers[module] + 1 if rest[0] == "norm" else below)


def path_mask(pattern: str) -> Callable[[Any], Any]:
    """Returns a function from a tree to a tree of bools: whether the pattern is found in the leaf's path."""
    regex = re.compile(pattern)
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: bool(regex.search(path_name(path))), tree)


def trained_mask(frozen: Sequence[str]) -> Callable[[Any], Any]:
    """Returns a function from parameters to a tree of bools: False where a pattern of `frozen` is found in the path.

    It raises ValueError if one of the patterns is found in no path, or if no parameter is trained.
    """

    def mask(params: Any) -> Any:
        for pattern in frozen:
            check_found(pattern, params, "optimizer.frozen")
        masks = [path_mask(pattern)(params) for pattern in frozen]
        trained = jax.tree.map(lambda _, *is_frozen: not any(is_frozen), params, *masks)
        if not any(jax.tree.leaves(trained)):
            raise ValueError(f"optimizer.frozen={tuple(frozen)} leaves nothing to train; {_paths(params)}")
        return trained

    return mask


def check_found(pattern: str, params: Any, field: str) -> None:
    """Raises ValueError if the pattern of a config field is found in no parameter's path."""
    if not any(jax.tree.leaves(path_mask(pattern)(params))):
        raise ValueError(f"{field}={pattern!r} is found in no parameter's path; {_paths(params)}")


def _paths(params: Any) -> str:
    paths = (path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    return f"the parameters: {', '.join(paths)}"
