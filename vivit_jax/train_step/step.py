"""The state of training and the two pure steps: values in, values out.

Nothing here knows which model it trains (`apply_fn` is given), where the data come from, or on how many devices it is:
under `jax.jit` over a mesh the sums below are sums over the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vivit_jax.augment import AugmentConfig, augment_pixels, mix_clips, step_keys, swap_pairs
from vivit_jax.optim import Optimizer
from vivit_jax.train_step.gradients import loss_and_gradients
from vivit_jax.train_step.guard import GuardConfig, GuardState, choose, judge
from vivit_jax.train_step.losses import (
    LossConfig,
    check_labels,
    cross_entropy,
    example_losses,
    hits,
    masked_mean,
    one_hot_targets,
)

__all__ = [
    "SINGLE_HEAD",
    "TrainState",
    "as_heads",
    "check_heads",
    "cross_entropy",
    "make_eval_step",
    "make_train_step",
    "masked_mean",
    "normalise",
    "one_hot_targets",
    "step_key",
]

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
SINGLE_HEAD = "label"  # the name of the only head of a data set with one


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step, and so all that a checkpoint must hold.

    Attributes:
      step: int32 scalar, steps taken, skipped ones too.
      params: the model's parameters, float32.
      opt_state: optax's state.
      ema: exponential moving average of `params`, a tree like it; None where it is off.
      guard: what the guard remembers.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any
    guard: GuardState

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation | Optimizer, ema_decay: float = 0.0
    ) -> TrainState:
        """The state before the first step; the average begins at the parameters."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            # Copied: buffers are donated to the step, and none twice.
            ema=jax.tree.map(jnp.copy, params) if ema_decay else None,
            guard=GuardState.create(),
        )


def normalise(video: jax.Array) -> jax.Array:
    """Pixels in [0, 255], uint8 or float, to float32 in [-1, 1]: x / 127.5 - 1. Any shape."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def as_heads(logits: Any) -> dict[str, jax.Array]:
    """Logits as {head: [B, C]}, whether the model has one head (an array) or names several (a mapping)."""
    return dict(logits) if isinstance(logits, Mapping) else {SINGLE_HEAD: logits}


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The random key of one step: a function of seed and step alone, so that a resumed run draws what it would have."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_train_step(
    apply_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation | Optimizer,
    schedule: optax.Schedule,
    *,
    seed: int = 0,
    label_smoothing: float = 0.0,
    loss: LossConfig | None = None,
    augment: AugmentConfig | None = None,
    guard: GuardConfig | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    sam_rho: float = 0.0,
    norms_by_part: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step as a pure function `(state, batch) -> (state, metrics)`, ready for `jax.jit`.

    Args:
      apply_fn: `(variables, video, train=..., rngs=...) -> logits`; `video` float32 [B, T, H, W, 3] in [-1, 1], logits
        [B, C] or {head: [B, C]}.
      optimizer: from `optim.make_optimizer`; or any optax transformation, and then all parameters are trained.
      schedule: step -> learning rate, for the metrics only (the optimizer holds its own).
      seed: of dropout, stochastic depth and augmentation.
      label_smoothing: e in [0, 1), training loss only.
      loss: softmax or sigmoid, and the weights of the heads; None: softmax, all weights 1.
      augment: photometric augmentation, mixup and cutmix; None or all off: the frames as they are.
      guard: when a step is skipped, see `GuardConfig`; None: where loss or gradient is not finite.
      accumulate_steps: parts that the batch is taken in, for memory. The step is that of the whole batch, to rounding,
        but for dropout and stochastic depth, which draw anew for each part.
      ema_decay: d of the moving average of the parameters, see `moving_average`; 0 turns it off.
      sam_rho: rho of sharpness-aware minimisation, see `gradients.ascend`; 0 turns it off.
      norms_by_part: the norms also for each top-level module of the model.

    Returns:
      The step. `batch`: `video` uint8 [B, T, H, W, 3], `label` {head: int32 [B], or under the sigmoid loss also float
      [B, C], 1 for each of a clip's labels}, `mask` [B]. Metrics, all float32 scalars:

      * `loss`, the weighted sum over the heads, and `accuracy`; with several heads `loss/HEAD` (before weighting) and
        `accuracy/HEAD`. Right is a clip whose highest logit is its label, or one of its labels; under mixup and cutmix,
        the label with the larger share in the mixture.
      * `learning_rate`, and `learning_rate/head` where it differs. Skipped steps do not move the schedule.
      * `gradient_norm` (before clipping, of what is trained), `parameter_norm`, `update_norm`; with `norms_by_part`
        also `gradient_norm/MODULE` and so on.
      * `skipped`, 1 where the guard skipped this step, else 0, and `skipped_in_a_row`. A skipped step's loss and
        gradient norm are reported as they are, NaN or not.

      Raises ValueError, when it is traced: model and data differ in heads, the batch does not divide into its parts, or
      the state has a moving average where the step keeps none, or the other way round.
    """
    augment, loss, guard = augment or AugmentConfig(), loss or LossConfig(), guard or GuardConfig()
    head_rate = getattr(optimizer, "head_learning_rate", 1.0)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if (state.ema is None) == bool(ema_decay):
            raise ValueError(f"ema_decay={ema_decay} in the step, but not in the state: TrainState.create takes it too")
        key, total = step_key(seed, state.step), jnp.sum(batch["mask"])
        trained = optimizer.trained(state.params) if isinstance(optimizer, Optimizer) else _all(state.params)

        def loss_fn(params: Any, rows: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            video = rows["video"] if augment.mixes else normalise(rows["video"])
            logits = as_heads(apply_fn({"params": params}, video, train=True, rngs={"dropout": key}))
            return _loss(logits, rows, total, loss, label_smoothing)

        rows = _augmented(key, batch, augment)
        value, metrics, gradients = loss_and_gradients(
            loss_fn, state.params, trained, rows, key, parts=accumulate_steps, sam_rho=sam_rho
        )
        accept, guard_state = judge(guard, state.guard, value, optax.tree.norm(gradients))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        # Kept and not moved by 0: that would turn a -0.0 into 0.0, and a mean of equal numbers rounds.
        params = _pick(trained, choose(accept, optax.apply_updates(state.params, updates), state.params), state.params)
        ema = state.ema
        if ema_decay:
            average = moving_average(ema, params, ema_decay, state.guard.accepted)
            ema = _pick(trained, choose(accept, average, ema), ema)

        rate = jnp.asarray(schedule(state.step - state.guard.skipped), jnp.float32)
        norms = _norms("update_norm", updates, norms_by_part)
        metrics |= {
            "loss": value,
            "learning_rate": rate,
            "skipped": 1.0 - accept,
            "skipped_in_a_row": guard_state.in_a_row,
        }
        metrics |= {"learning_rate/head": head_rate * rate} if head_rate != 1 else {}
        metrics |= {name: jnp.where(accept, norm, 0.0) for name, norm in norms.items()}
        metrics |= _norms("gradient_norm", gradients, norms_by_part) | _norms("parameter_norm", params, norms_by_part)
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=choose(accept, opt_state, state.opt_state),
            ema=ema,
            guard=guard_state,
        ), {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return train_step


def moving_average(average: Any, params: Any, decay: float, updates: jax.Array) -> Any:
    """The exponential moving average of the parameters, one step on: d average + (1 - d) params.

    It begins at the first parameters, and so that these are soon forgotten, d = min(decay, (1 + n) / (10 + n)) at the
    n-th update: the warm-up of TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
      average: before, a tree like `params`.
      params: after the update.
      decay: in [0, 1).
      updates: scalar n, how many there were before this one.
    """
    decay = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
    return optax.incremental_update(params, average, 1.0 - decay)


def make_eval_step(apply_fn: Callable[..., Any]) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Logits of V views of each video, averaged (section 4.1, multi-view evaluation), as `(params, batch) -> logits`.

    `batch["video"]` is uint8 [B, V, T, H, W, 3]. The views go through the model one after another, so that memory does
    not grow with their number. Returns {head: float32 [B, C]}.
    """

    def eval_step(params: Any, batch: Batch) -> dict[str, jax.Array]:
        def one_view(video: jax.Array) -> dict[str, jax.Array]:
            return as_heads(apply_fn({"params": params}, normalise(video), train=False))

        logits = jax.lax.map(one_view, jnp.moveaxis(batch["video"], 1, 0))
        return {head: jnp.mean(values, axis=0) for head, values in logits.items()}

    return eval_step


def check_heads(logits: Mapping[str, jax.Array], labels: Mapping[str, Any]) -> None:
    """Raises ValueError unless model and data name the same heads."""
    if set(logits) != set(labels):
        raise ValueError(
            f"the model has the heads {sorted(logits)}, the data set the labels {sorted(labels)}; "
            "set model.num_classes from the data set"
        )


def _augmented(key: jax.Array, batch: Batch, augment: AugmentConfig) -> Batch:
    """The batch as the loss takes it: `video` augmented, in [0, 255], or mixed, in [-1, 1]; then also `partner`, the
    labels of each clip's partner, and `share` [B], that of its own."""
    rows = {name: batch[name] for name in ("video", "label", "mask")}
    if augment.enabled:
        pixels_key, mixing_key = step_keys(key)
        rows["video"] = augment_pixels(pixels_key, rows["video"], augment)
        if augment.mixes:
            rows["video"], rows["share"] = mix_clips(mixing_key, normalise(rows["video"]), rows["mask"], augment)
            rows["partner"] = jax.tree.map(swap_pairs, rows["label"])
    return rows


def _loss(
    logits: Metrics, rows: Batch, total: jax.Array, config: LossConfig, smoothing: float
) -> tuple[jax.Array, Metrics]:
    """The share of some rows in the loss and the metrics of a batch whose mask adds up to `total`."""
    labels, mask = rows["label"], rows["mask"]
    check_heads(logits, labels)
    weights = config.weights(labels)
    losses, right = {}, {}
    for head, label in labels.items():
        check_labels(head, label, config.name)
        targets, loudest = one_hot_targets(logits[head], label, smoothing), label
        if "share" in rows:
            share, partner = rows["share"], rows["partner"][head]
            others = one_hot_targets(logits[head], partner, smoothing)
            targets = share[:, None] * targets + (1 - share[:, None]) * others
            loudest = jnp.where(share.reshape(-1, *[1] * (label.ndim - 1)) >= 0.5, label, partner)
        losses[head] = masked_mean(example_losses(logits[head], targets, config.name), mask, total)
        right[head] = masked_mean(hits(logits[head], loudest), mask, total)
    value = sum(weights[head] * losses[head] for head in losses)
    if len(losses) == 1:
        return value, {"accuracy": next(iter(right.values()))}
    return value, {f"loss/{h}": v for h, v in losses.items()} | {f"accuracy/{h}": v for h, v in right.items()}


def _norms(name: str, tree: Any, by_part: bool) -> Metrics:
    """The global norm of a tree, and of each of its top-level modules where asked."""
    parts = {f"{name}/{part}": optax.tree.norm(leaves) for part, leaves in tree.items()} if by_part else {}
    return {name: optax.tree.norm(tree)} | parts


def _all(params: Any) -> Any:
    """All is trained."""
    return jax.tree.map(lambda _: True, params)


def _pick(trained: Any, new: Any, old: Any) -> Any:
    """The leaves of `new` that are trained, the others of `old`."""
    return jax.tree.map(lambda t, a, b: a if t else b, trained, new, old)
