"""Losses of the heads: softmax cross-entropy for one label per clip, sigmoid cross-entropy for multi-label heads."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from vivit_jax.utils.checks import one_of

KINDS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training loss. The default is the paper's: softmax cross-entropy, summed over the heads.

    Attributes:
      name: 'softmax': one label per clip; 'sigmoid': a binary decision for each class, for multi-label heads or others.
      head_weights: {head: weight}, at least 0, default 1. The loss is the sum of weight x loss over the heads.
    """

    name: str = "softmax"
    head_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("loss", self, name=KINDS)
        for head, weight in self.head_weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"loss.head_weights.{head}={weight} must be at least 0, and finite")

    def weights(self, heads: Iterable[str]) -> dict[str, float]:
        """Returns the weight of each head; raises ValueError for unknown heads, or if none is above 0."""
        heads = list(heads)
        if unknown := sorted(set(self.head_weights) - set(heads)):
            raise ValueError(f"loss.head_weights names {', '.join(unknown)}; the heads are {', '.join(heads)}")
        weights = {head: float(self.head_weights.get(head, 1.0)) for head in heads}
        if not any(weights.values()):
            raise ValueError(f"loss.head_weights={weights} leaves nothing to train; give one head a weight above 0")
        return weights


def one_hot_targets(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Returns the targets of each class, [B, C], with label smoothing.

    The target is y (1 - e) + e / C over C classes (Szegedy et al., arXiv:1512.00567, section 7). It is the same for the
    sigmoid loss, as in "ResNet strikes back" (arXiv:2110.00476, timm's `BinaryCrossEntropy`) and scenic: moving each of
    C binary targets towards 1/2 would ask for e C/2 labels per clip. `logits` [B, C] give shape and dtype; `labels` are
    int [B] in [0, C), or float [B, C], 1 for each label of a clip, else 0; `smoothing` is e in [0, 1).
    """
    if labels.ndim < logits.ndim:
        labels = jax.nn.one_hot(labels, logits.shape[-1])
    elif labels.shape != logits.shape:
        shapes = f"labels have the shape {labels.shape}, logits {logits.shape}"
        raise ValueError(f"{shapes}; their number of classes must be the same")
    return optax.smooth_labels(labels.astype(logits.dtype), smoothing)


def example_losses(logits: jax.Array, targets: jax.Array, kind: str = "softmax") -> jax.Array:
    """Returns the loss of each example: [B, C] logits and targets -> [B].

    'softmax': -sum_c y_c log softmax(x)_c. 'sigmoid': -sum_c [y_c log s(x_c) + (1 - y_c) log(1 - s(x_c))], the sum,
    not the mean, over the classes, as in big_vision (`utils.sigmoid_xent`).
    """
    if kind == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def masked_mean(values: jax.Array, mask: jax.Array, total: jax.Array | None = None) -> jax.Array:
    """Returns the mean of `values` [B], float or bool, over the examples whose `mask` [B] is 1; 0 if there are none.

    For a microbatch, `total` is the sum of the whole batch's mask, so that the results add up to the batch's mean.
    """
    mask = mask.astype(jnp.promote_types(values.dtype, jnp.float32))
    total = jnp.sum(mask) if total is None else total.astype(mask.dtype)
    return jnp.sum(values * mask) / jnp.maximum(total, 1.0)


def top1_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns whether the class with the highest logit is the label [B], or one of the labels [B, C]: bool [B]."""
    best = jnp.argmax(logits, axis=-1)
    if labels.ndim < logits.ndim:
        return best == labels
    return jnp.take_along_axis(labels, best[:, None], axis=-1)[:, 0] > 0
