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

from vivit_jax.augment import AugmentConfig, augment_pixels, mix, mixup_weights, swap_pairs

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]
SINGLE_HEAD = "label"  # the name of the only head of a data set with one
_AUGMENTATION = 1  # folded into the step's key: augmentation draws from a stream of its own


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step, and so all that a checkpoint must hold.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      params: the model's parameters, float32.
      opt_state: optax's state.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def normalise(video: jax.Array) -> jax.Array:
    """Pixels in [0, 255], uint8 or float, to float32 in [-1, 1]: x / 127.5 - 1. Any shape."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def as_heads(logits: Any) -> dict[str, jax.Array]:
    """Logits as {head: [B, C]}, whether the model has one head (an array) or names several (a mapping)."""
    return dict(logits) if isinstance(logits, Mapping) else {SINGLE_HEAD: logits}


def one_hot_targets(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Labels as distributions over the classes.

    With label smoothing e the target is y (1 - e) + e / C over C classes (Szegedy et al., arXiv:1512.00567, section 7).

    Args:
      logits: [B, C] float, whose shape and dtype the targets get.
      labels: [B] int, in [0, C).
      smoothing: e in [0, 1).

    Returns:
      [B, C]; each row sums to 1.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax cross-entropy, averaged over the examples that are not padding.

    Args:
      logits: [B, C] float.
      targets: [B, C], a distribution over the classes for each example: `one_hot_targets`, or a mixture of two.
      mask: [B] float, 1 for examples that count, 0 for padding.

    Returns:
      A scalar; 0 where the mask is 0 throughout.
    """
    return masked_mean(optax.softmax_cross_entropy(logits, targets), mask)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values` [B] over the examples whose `mask` [B] is 1; 0 where there is none."""
    mask = mask.astype(values.dtype)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The random key of one step: a function of seed and step alone, so that a resumed run draws what it would have."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_train_step(
    apply_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int = 0,
    label_smoothing: float = 0.0,
    augment: AugmentConfig | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step as a pure function `(state, batch) -> (state, metrics)`, ready for `jax.jit`.

    Args:
      apply_fn: `(variables, video, train=..., rngs=...) -> logits`; `video` float32 [B, T, H, W, 3] in [-1, 1], logits
        [B, C] or {head: [B, C]}.
      optimizer: optax transformation.
      schedule: step -> learning rate, for the metrics only (the optimizer holds its own).
      seed: of dropout, stochastic depth and augmentation.
      label_smoothing: e in [0, 1), training loss only.
      augment: photometric augmentation and mixup; None or all off: the frames as they are.

    Returns:
      The step. `batch`: `video` uint8 [B, T, H, W, 3], `label` {head: int32 [B]}, `mask` [B]. The loss is the sum over
      the heads. Metrics, all scalars: `loss`, `accuracy` (`loss/HEAD`, `accuracy/HEAD` with several heads),
      `learning_rate`, `gradient_norm` (before clipping), `parameter_norm`, `update_norm`.
      Under mixup the accuracy is against the label with the larger share in each mixture.
    """
    augment = augment or AugmentConfig()

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(seed, state.step)
        video, labels, mask, shares = batch["video"], batch["label"], batch["mask"], None
        if augment.enabled:
            pixels_key, mixup_key = jax.random.split(jax.random.fold_in(key, _AUGMENTATION))
            video = augment_pixels(pixels_key, video, augment)
        video = normalise(video)
        if augment.mixup:
            shares = mixup_weights(mixup_key, mask, augment.mixup)
            video = mix(video, shares)

        def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
            logits = as_heads(apply_fn({"params": params}, video, train=True, rngs={"dropout": key}))
            check_heads(logits, labels)
            targets = {h: one_hot_targets(logits[h], labels[h], label_smoothing) for h in labels}
            hard = labels
            if shares is not None:
                targets = {h: mix(t, shares) for h, t in targets.items()}
                hard = {h: jnp.where(shares >= 0.5, y, swap_pairs(y)) for h, y in labels.items()}
            losses = {h: cross_entropy(logits[h], targets[h], mask) for h in labels}
            correct = {h: masked_mean(jnp.argmax(logits[h], -1) == hard[h], mask) for h in labels}
            return sum(losses.values()), _named(losses, correct)

        (loss, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "loss": loss,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


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


def _named(losses: Metrics, correct: Metrics) -> Metrics:
    """`accuracy` with one head; `loss/HEAD` and `accuracy/HEAD` with several."""
    if len(losses) == 1:
        return {"accuracy": next(iter(correct.values()))}
    return {f"loss/{h}": v for h, v in losses.items()} | {f"accuracy/{h}": v for h, v in correct.items()}
