"""Metrics as clu collections: top-k accuracy, loss, confusion matrix, verb/noun/action; mean average precision.

Each member of a collection is a sum over examples, so updates merge in any order, and padding (mask 0) adds nothing.
Average precision ranks all videos, so it is computed on the host.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from sklearn.metrics import average_precision_score

from vivit_jax.train_step.losses import example_losses, one_hot_targets

ACTION = "action"  # EPIC-Kitchens: the pair of verb and noun
PAIR = ("verb", "noun")
MEAN_AVERAGE_PRECISION = "mean_average_precision"


def rank_of_true_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the 0-based rank of the true class; a top-k prediction is correct where it is below k.

    Ties are broken by class id, as in `jax.lax.top_k`. A true class whose logit is NaN is ranked last.

    Args:
      logits: [B, C] float.
      labels: [B] int in [0, C).

    Returns:
      int32 [B] in [0, C).
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ids = jnp.arange(logits.shape[-1])
    behind = (logits < own) | ((logits == own) & (ids >= labels[:, None]))
    return jnp.sum(~behind, axis=-1, dtype=jnp.int32)


def pair_scores(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the scores of all pairs of classes: log of the product of the two softmaxes.

    EPIC-Kitchens-100 scores actions like this (Damen et al., arXiv:2006.13256; `compute_action_scores` of its baseline
    keeps only pairs of the 100 highest verbs and nouns, which gives the same five highest pairs). Verb and noun are
    treated as independent, and a prediction is correct where both are.

    Args:
      first: [B, C1] logits, e.g. of the verb.
      second: [B, C2] logits, e.g. of the noun.

    Returns:
      [B, C1 * C2] log-probabilities; pair (i, j) at i * C2 + j.
    """
    pairs = jax.nn.log_softmax(first)[:, :, None] + jax.nn.log_softmax(second)[:, None, :]
    return pairs.reshape(pairs.shape[0], -1)


def _top_k(k: int, head: str | tuple[str, str]) -> type[clu_metrics.Metric]:
    """Returns the top-k accuracy of a head, or of a pair of heads."""

    def correct(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        if isinstance(head, tuple):
            scores = pair_scores(logits[head[0]], logits[head[1]])
            truth = labels[head[0]] * logits[head[1]].shape[-1] + labels[head[1]]
        else:
            scores, truth = logits[head], labels[head]
        return {"values": (rank_of_true_class(scores, truth) < k).astype(jnp.float32), "mask": mask}

    return clu_metrics.Average.from_fun(correct)


def losses(logits: jax.Array, labels: jax.Array, kind: str = "softmax") -> jax.Array:
    """Returns the loss of each example, without label smoothing.

    Args:
      logits: [B, C] float.
      labels: int [B]; or multi-label [B, C] of 0 and 1, for which the loss is always 'sigmoid'.
      kind: 'softmax', cross-entropy; 'sigmoid', binary cross-entropy, summed over the classes.

    Returns:
      [B], in nats.
    """
    kind = "sigmoid" if labels.ndim == logits.ndim else kind
    return example_losses(logits, one_hot_targets(logits, labels), kind)


def _loss(head: str, kind: str) -> type[clu_metrics.Metric]:
    """Returns the mean of `losses` of a head."""

    def loss(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        return {"values": losses(logits[head], labels[head], kind), "mask": mask}

    return clu_metrics.Average.from_fun(loss)


def _confusion(head: str) -> type[clu_metrics.Metric]:
    """Returns counts [C, C], true classes in rows, predicted ones in columns."""

    @flax.struct.dataclass
    class Confusion(clu_metrics.Metric):
        matrix: jax.Array

        @classmethod
        def from_model_output(cls, *, logits: Any, labels: Any, mask: Any, **_: Any) -> Confusion:
            classes = logits[head].shape[-1]
            cell = labels[head] * classes + jnp.argmax(logits[head], -1)
            counts = jnp.zeros(classes * classes, jnp.int32).at[cell].add(mask.astype(jnp.int32))
            return cls(matrix=counts.reshape(classes, classes))

        def merge(self, other: Confusion) -> Confusion:
            return type(self)(matrix=self.matrix + other.matrix)

        def compute(self) -> jax.Array:
            return self.matrix

    return Confusion


@flax.struct.dataclass
class Count(clu_metrics.Metric):
    """Numbers of examples: `counted` in the metrics, and `listed` without padding, including unreadable ones."""

    counted: jax.Array
    listed: jax.Array

    @classmethod
    def from_model_output(cls, *, mask: Any, index: Any, **_: Any) -> Count:
        return cls(counted=jnp.sum(mask.astype(jnp.int32)), listed=jnp.sum((index >= 0).astype(jnp.int32)))

    def merge(self, other: Count) -> Count:
        return type(self)(counted=self.counted + other.counted, listed=self.listed + other.listed)

    def compute(self) -> dict[str, jax.Array]:
        return {"counted": self.counted, "listed": self.listed}


def has_action(heads: Mapping[str, int], multi_label: Collection[str] = ()) -> bool:
    """Returns whether pairs of verb and noun are scored: there are both heads, and neither is multi-label."""
    return set(PAIR) <= set(heads) and not set(PAIR) & set(multi_label)


def collection(
    heads: Mapping[str, int], multi_label: Collection[str] = (), *, loss: str = "softmax", confusion: bool = True
) -> type[clu_metrics.Collection]:
    """Returns the clu collection for the heads of a data set.

    Args:
      heads: {head: number of classes}; the heads `verb` and `noun` add an `action`.
      multi_label: heads that only have a loss here; `average_precision` is their accuracy.
      loss: its kind, see `losses`.
      confusion: whether to count confusion matrices, which `summarise` needs for the mean class accuracy.

    Returns:
      A Collection class whose `single_from_model_output` takes `logits` {head: [B, C]}, `labels` {head: int32 [B], or
      float [B, C]}, `mask` [B], `index` [B]. Heads of five classes or fewer have no top-5.
    """
    members: dict[str, type[clu_metrics.Metric]] = {"count": Count}
    for head, classes in heads.items():
        members[f"{head}__loss"] = _loss(head, loss)
        if head in multi_label:
            continue
        if confusion:
            members[f"{head}__confusion"] = _confusion(head)
        for k in (1, 5):
            if k == 1 or classes > k:
                members[f"{head}__top{k}"] = _top_k(k, head)
    if has_action(heads, multi_label):
        for k in (1, 5):
            if k == 1 or heads["verb"] * heads["noun"] > k:
                members[f"{ACTION}__top{k}"] = _top_k(k, PAIR)
    return clu_metrics.Collection.create(**members)


def accuracy_names(heads: Mapping[str, int], multi_label: Collection[str] = ()) -> list[str]:
    """Returns the metrics for which higher is better; they can select the best checkpoint."""
    members = [name.partition("__") for name in collection(heads, multi_label).__annotations__]
    kinds = [(head, {"confusion": "mean_class_accuracy"}.get(what, what)) for head, _, what in members]
    kinds += [(head, MEAN_AVERAGE_PRECISION) for head in heads if head in multi_label]
    return [scalar_name(head, what, heads) for head, what in kinds if what not in ("", "loss")]


def scalar_name(head: str, what: str, heads: Mapping[str, int]) -> str:
    """Returns `top1` for a single head, `verb/top1` where there are several."""
    return f"{head}/{what}" if len(heads) > 1 else what


def summarise(computed: Mapping[str, Any], heads: Mapping[str, int]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Converts the output of `Collection.compute()` to (scalars, {head: confusion matrix, int [C, C]}).

    Scalars are Python floats named by `scalar_name`: `top1`, `top5`, `loss`, `mean_class_accuracy`. Accuracies lie in
    [0, 1]; NaN without an example.
    """
    scalars, confusion = {}, {}
    for name, value in computed.items():
        head, _, what = name.partition("__")
        if what == "confusion":
            confusion[head] = np.asarray(value)
            what, value = "mean_class_accuracy", mean_class_accuracy(confusion[head])
        if what:
            scalars[scalar_name(head, what, heads)] = float(value)
    return scalars, confusion


def mean_class_accuracy(confusion: np.ndarray) -> float:
    """Returns the mean accuracy of the classes that occur in `confusion`, int [C, C] with true classes in rows."""
    total = confusion.sum(1)
    seen = total > 0
    return float(np.mean(np.diag(confusion)[seen] / total[seen])) if seen.any() else float("nan")


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class (scikit-learn's definition, without interpolation).

    Args:
      truth: [N, C], 1 where the class is present in the video, else 0.
      scores: [N, C], on any monotone scale; NaN ranks a video last.

    Returns:
      float64 [C] in [0, 1]; NaN for a class without a video.
    """
    truth, largest = np.asarray(truth) > 0, np.finfo(np.float32).max
    scores = np.nan_to_num(scores, nan=-largest, posinf=largest, neginf=-largest)
    result = np.full(truth.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(axis=0)):
        result[label] = average_precision_score(truth[:, label], scores[:, label])
    return result


def mean_over_present(of_classes: np.ndarray) -> float:
    """Returns the mean average precision over the classes with a video; NaN without any."""
    present = np.isfinite(of_classes)
    return float(np.mean(of_classes[present])) if present.any() else float("nan")
