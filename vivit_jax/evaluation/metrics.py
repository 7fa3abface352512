"""Metrics of a data set as clu collections: top-k, confusion, verb/noun/action; mean average precision.

Each member of a collection is a sum over examples, so updates of any batches merge in any order, and padding (mask 0)
adds nothing. Average precision ranks all videos at once, and so is computed on the host, from the scores of all.
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
    """How many classes are ranked before the true one; the top-k prediction is right where this is below k.

    Ties are broken by class number, as `jax.lax.top_k` does; where a logit is NaN the true class counts as last.

    Args:
      logits: [B, C] float.
      labels: [B] int in [0, C).

    Returns:
      int32 [B] in [0, C).
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    number = jnp.arange(logits.shape[-1])
    behind = (logits < own) | ((logits == own) & (number >= labels[:, None]))
    return jnp.sum(~behind, axis=-1, dtype=jnp.int32)


def pair_scores(first: jax.Array, second: jax.Array) -> jax.Array:
    """Scores of all pairs of classes: log of the product of the two softmaxes.

    So EPIC-Kitchens-100 scores actions (Damen et al., arXiv:2006.13256; `compute_action_scores` of its baseline for
    action recognition, which looks at the pairs of the 100 highest verbs and nouns alone: the same five highest pairs).
    Verb and noun count as independent, every pair of classes competes, and a prediction is right where both are.

    Args:
      first: [B, C1] logits, e.g. of the verb.
      second: [B, C2] logits, e.g. of the noun.

    Returns:
      [B, C1 * C2] log-probabilities; pair (i, j) at i * C2 + j.
    """
    pairs = jax.nn.log_softmax(first)[:, :, None] + jax.nn.log_softmax(second)[:, None, :]
    return pairs.reshape(pairs.shape[0], -1)


def _top_k(k: int, head: str | tuple[str, str]) -> type[clu_metrics.Metric]:
    """Share of examples whose true class (of a head, or of a pair of heads) is among the k highest."""

    def right(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        if isinstance(head, tuple):
            scores = pair_scores(logits[head[0]], logits[head[1]])
            truth = labels[head[0]] * logits[head[1]].shape[-1] + labels[head[1]]
        else:
            scores, truth = logits[head], labels[head]
        return {"values": (rank_of_true_class(scores, truth) < k).astype(jnp.float32), "mask": mask}

    return clu_metrics.Average.from_fun(right)


def losses(logits: jax.Array, labels: jax.Array, kind: str = "softmax") -> jax.Array:
    """The loss of each example, without label smoothing.

    Args:
      logits: [B, C] float.
      labels: int [B]; or [B, C], 1 where a class is present, else 0, and then the loss is always 'sigmoid'.
      kind: of `LossConfig`: 'softmax', cross-entropy; 'sigmoid', binary cross-entropy, summed over the classes.

    Returns:
      [B], in nats.
    """
    kind = "sigmoid" if labels.ndim == logits.ndim else kind
    return example_losses(logits, one_hot_targets(logits, labels), kind)


def _loss(head: str, kind: str) -> type[clu_metrics.Metric]:
    """Mean of `losses` of a head."""

    def loss(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        return {"values": losses(logits[head], labels[head], kind), "mask": mask}

    return clu_metrics.Average.from_fun(loss)


def _confusion(head: str) -> type[clu_metrics.Metric]:
    """Counts [C, C]: rows are the true classes, columns the predicted ones."""

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
    """Number of examples: those that count, and all those that are not padding (unreadable ones included)."""

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
    """Whether pairs of verb and noun are scored: the data set has both, with one label each."""
    return set(PAIR) <= set(heads) and not set(PAIR) & set(multi_label)


def collection(
    heads: Mapping[str, int], multi_label: Collection[str] = (), *, loss: str = "softmax", confusion: bool = True
) -> type[clu_metrics.Collection]:
    """The clu collection for a data set's heads.

    Args:
      heads: {head: number of classes}. With the heads `verb` and `noun` there is an `action` too.
      multi_label: heads whose videos have several labels at once. Here they have a loss; `average_precision` is theirs.
      loss: its kind, as `losses` takes it.
      confusion: with confusion matrices, from which `summarise` takes the mean class accuracy.

    Returns:
      A Collection class whose `single_from_model_output` takes `logits` {head: [B, C]}, `labels` {head: int32 [B], or
      float [B, C]}, `mask` [B], `index` [B]. Top-5 is left out where there are no more than five classes.
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
    """The metrics by which a checkpoint can be the best: those of an evaluation for which higher is better."""
    members = [name.partition("__") for name in collection(heads, multi_label).__annotations__]
    kinds = [(head, {"confusion": "mean_class_accuracy"}.get(what, what)) for head, _, what in members]
    kinds += [(head, MEAN_AVERAGE_PRECISION) for head in heads if head in multi_label]
    return [scalar_name(head, what, heads) for head, what in kinds if what not in ("", "loss")]


def scalar_name(head: str, what: str, heads: Mapping[str, int]) -> str:
    """`top1` for the only head, `verb/top1` where there are several."""
    return f"{head}/{what}" if len(heads) > 1 else what


def summarise(computed: Mapping[str, Any], heads: Mapping[str, int]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What a collection computed, as named Python floats and confusion matrices.

    Args:
      computed: of `Collection.compute()`.
      heads: as given to `collection`.

    Returns:
      Scalars: `top1`, `top5`, `loss`, `mean_class_accuracy` for a single head; `verb/top1` and so on for several, and
      `action/top1`. Accuracies lie in [0, 1]; NaN where no example counted. And {head: int [C, C]}.
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
    """Mean over the classes that occur of the share that was recognised; `confusion` int [C, C], rows the truth."""
    total = confusion.sum(1)
    seen = total > 0
    return float(np.mean(np.diag(confusion)[seen] / total[seen])) if seen.any() else float("nan")


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each class: the sum over the ranks n of (R_n - R_(n-1)) P_n, with P_n and R_n precision and
    recall of the videos ranked n or higher; videos of the same score share a rank. No interpolation.

    Args:
      truth: [N, C], 1 where the class is present in the video, else 0.
      scores: [N, C], higher for the more probable; any monotone scale.

    Returns:
      float64 [C] in [0, 1]; NaN for a class that no video has. A score that is not a number ranks its video last.
    """
    truth, largest = np.asarray(truth) > 0, np.finfo(np.float32).max
    scores = np.nan_to_num(scores, nan=-largest, posinf=largest, neginf=-largest)
    result = np.full(truth.shape[1], np.nan)
    for number in np.flatnonzero(truth.any(axis=0)):
        result[number] = average_precision_score(truth[:, number], scores[:, number])
    return result


def mean_over_present(of_classes: np.ndarray) -> float:
    """Mean average precision: the macro mean of `average_precision` over the classes that some video has.

    NaN where there is none.
    """
    present = np.isfinite(of_classes)
    return float(np.mean(of_classes[present])) if present.any() else float("nan")
