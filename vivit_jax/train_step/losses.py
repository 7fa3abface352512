"""Losses of the heads: softmax cross-entropy for one label a clip, sigmoid for several labels at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

KINDS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised. The default is the paper's: softmax cross-entropy, all heads alike.

    Attributes:
      name: 'softmax', one label a clip; 'sigmoid', each class a decision of its own: several labels a clip, or one.
      head_weights: {head: weight}, at least 0; a head that is not named has weight 1. The loss is the sum of weight x
        loss over the heads: weights are not normalised, so that the default is the plain sum.

    Raises:
      ValueError: a field out of its range.
    """

    name: str = "softmax"
    head_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ValueError(f"loss.name={self.name!r} is not known; choose one of {', '.join(KINDS)}")
        for head, weight in self.head_weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"loss.head_weights.{head}={weight} must be at least 0, and finite")

    def weights(self, heads: Iterable[str]) -> dict[str, float]:
        """The weight of each of the heads.

        Raises:
          ValueError: a weight for a head that does not exist, or none above 0.
        """
        heads = list(heads)
        if unknown := sorted(set(self.head_weights) - set(heads)):
            raise ValueError(f"loss.head_weights names {', '.join(unknown)}; the heads are {', '.join(heads)}")
        weights = {head: float(self.head_weights.get(head, 1.0)) for head in heads}
        if not any(weights.values()):
            raise ValueError(f"loss.head_weights={weights} leaves nothing to train; give one head a weight above 0")
        return weights


def one_hot_targets(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Labels as targets for each class.

    With label smoothing e the target is y (1 - e) + e / C over C classes (Szegedy et al., arXiv:1512.00567, section
    7). Under the sigmoid loss it is the same, as in "ResNet strikes back" (arXiv:2110.00476, timm's
    `BinaryCrossEntropy`) and scenic: drawing each of C decisions towards 1/2 would ask for C/2 e labels a clip.

    Args:
      logits: [B, C] float, whose shape and dtype the targets get.
      labels: [B] int, in [0, C); or [B, C] float, 1 for each label of a clip, else 0.
      smoothing: e in [0, 1).

    Returns:
      [B, C]; each row sums to 1 where labels are numbers.

    Raises:
      ValueError: [B, C] labels of another C.
    """
    if labels.ndim == logits.ndim and labels.shape != logits.shape:
        raise ValueError(f"labels have the shape {labels.shape}, logits {logits.shape}; they must have as many classes")
    many = labels.ndim == logits.ndim
    hot = labels.astype(logits.dtype) if many else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.smooth_labels(hot, smoothing)


def example_losses(logits: jax.Array, targets: jax.Array, kind: str = "softmax") -> jax.Array:
    """The loss of each example: [B, C] logits and targets -> [B].

    'softmax': -sum_c y_c log softmax(x)_c. 'sigmoid': -sum_c [y_c log s(x_c) + (1 - y_c) log(1 - s(x_c))], the sum and
    not the mean over the classes, as big_vision trains its sigmoid models (`utils.sigmoid_xent`).
    """
    if kind == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax cross-entropy, averaged over the examples that are not padding.

    Args:
      logits: [B, C] float.
      targets: [B, C], a distribution over the classes for each example: `one_hot_targets`, or a mixture of two.
      mask: [B] float, 1 for examples that count, 0 for padding.

    Returns:
      A scalar; 0 where the mask is 0 throughout.
    """
    return masked_mean(example_losses(logits, targets), mask)


def masked_mean(values: jax.Array, mask: jax.Array, total: jax.Array | None = None) -> jax.Array:
    """Mean of `values` [B] over the examples whose `mask` [B] is 1; 0 where there is none.

    Args:
      values: [B], float or bool.
      mask: [B].
      total: of a batch that is taken in parts, the sum of the whole mask: the results of the parts then add up to the
        mean of the whole. None: of this mask.
    """
    mask = mask.astype(jnp.promote_types(values.dtype, jnp.float32))
    total = jnp.sum(mask) if total is None else total.astype(mask.dtype)
    return jnp.sum(values * mask) / jnp.maximum(total, 1.0)


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the class with the highest logit is the label, or one of the labels.

    Args:
      logits: [B, C].
      labels: [B] int, or [B, C] float, 1 for each label of a clip.

    Returns:
      bool [B].
    """
    best = jnp.argmax(logits, axis=-1)
    if labels.ndim < logits.ndim:
        return best == labels
    return jnp.take_along_axis(labels, best[:, None], axis=-1)[:, 0] > 0


def check_labels(head: str, labels: jax.Array, kind: str) -> None:
    """Raises ValueError where a head has several labels a clip, [B, C], but the loss is 'softmax'."""
    if kind == "softmax" and labels.ndim > 1:
        raise ValueError(f"the head {head!r} has several labels a clip; set loss.name='sigmoid'")
