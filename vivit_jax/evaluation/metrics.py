"""Metrics: loss and top-k accuracy as clu collections, on the device; those of single classes on the host.

Each member of a collection is a sum over examples, so updates merge in any order, and padding (mask 0) adds nothing.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from vivit_jax.train_step.losses import example_losses, one_hot_targets

ACTION = "action"  # EPIC-Kitchens: the pair of verb and noun
PAIR = ("verb", "noun")
MEAN_AVERAGE_PRECISION = "mean_average_precision"
MEAN_CLASS_ACCURACY = "mean_class_accuracy"


def rank_of_true_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the 0-based rank of the true class; a top-k prediction is correct where it is below k.

    Logits [B, C] and labels int [B] give int32 [B]. Ties are broken by class id, as in `jax.lax.top_k`; NaN comes last.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ids = jnp.arange(logits.shape[-1])
    behind = (logits < own) | ((logits == own) & (ids >= labels[:, None]))
    return jnp.sum(~behind, axis=-1, dtype=jnp.int32)


def pair_scores(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the log of the product of two softmaxes: logits [B, C1], [B, C2] -> [B, C1 * C2], (i, j) at i * C2 + j.

    EPIC-Kitchens-100 scores actions like this (Damen et al., arXiv:2006.13256; `compute_action_scores` of its baseline
    keeps only pairs of the 100 highest verbs and nouns, which gives the same five highest pairs). Verb and noun are
    treated as independent, and a prediction is correct where both are.
    """
    pairs = jax.nn.log_softmax(first)[:, :, None] + jax.nn.log_softmax(second)[:, None, :]
    return pairs.reshape(pairs.shape[0], -1)


def scores_and_truth(
    head: str, logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns logits and labels of a head; of `action`, where no head has that name, those of the pairs."""
    if head in logits:
        return logits[head], labels[head]
    verb, noun = PAIR
    return pair_scores(logits[verb], logits[noun]), labels[verb] * logits[noun].shape[-1] + labels[noun]


def _average(head: str, value: Callable[[jax.Array, jax.Array], jax.Array]) -> type[clu_metrics.Metric]:
    """Returns the mean of `value(logits, labels)`, [B], of a head over examples."""

    def of_examples(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        return {"values": value(*scores_and_truth(head, logits, labels)), "mask": mask}

    return clu_metrics.Average.from_fun(of_examples)


def losses(logits: jax.Array, labels: jax.Array, kind: str = "softmax") -> jax.Array:
    """Returns the loss of each example, [B], in nats, without label smoothing; `kind` as in `example_losses`.

    Labels are int [B], or multi-label [B, C] of 0 and 1, for which the loss is always 'sigmoid'.
    """
    kind = "sigmoid" if labels.ndim == logits.ndim else kind
    return example_losses(logits, one_hot_targets(logits, labels), kind)


def has_action(heads: Collection[str], multi_label: Collection[str] = ()) -> bool:
    """Returns whether pairs of verb and noun are scored: there are both heads, not multi-label, and no `action`."""
    return ACTION not in heads and set(PAIR) <= set(heads) and not set(PAIR) & set(multi_label)


def ranked_heads(heads: Mapping[str, int], multi_label: Collection[str] = ()) -> dict[str, int]:
    """Returns {head: classes} of what has a top-k accuracy: the single-label heads, and the action if `has_action`."""
    verb, noun = PAIR
    action = {ACTION: heads[verb] * heads[noun]} if has_action(heads, multi_label) else {}
    return {head: classes for head, classes in heads.items() if head not in multi_label} | action


def collection(
    heads: Mapping[str, int], multi_label: Collection[str] = (), loss: str = "softmax"
) -> type[clu_metrics.Collection]:
    """Returns the clu collection for the heads of a data set: the loss, and top-1 and top-5 of single-label heads.

    Its `single_from_model_output` takes `logits` {head: [B, C]}, `labels` {head: int32 [B], or float [B, C]} and `mask`
    [B]. Heads of five classes or fewer have no top-5; multi-label heads have `average_precision` instead. The heads
    `verb` and `noun` add an `action`. `loss` is a kind of `losses`.
    """
    members = {f"{head}__loss": _average(head, functools.partial(losses, kind=loss)) for head in heads}
    for head, classes in ranked_heads(heads, multi_label).items():
        for k in (1, 5):
            if k == 1 or classes > k:
                members[f"{head}__top{k}"] = _average(head, lambda x, y, k=k: jnp.float32(rank_of_true_class(x, y) < k))
    return clu_metrics.Collection.create(**members)


def accuracy_names(heads: Mapping[str, int], multi_label: Collection[str] = ()) -> list[str]:
    """Returns the metrics for which higher is better; they can select the best checkpoint."""
    members = [name.rsplit("__", 1) for name in collection(heads, multi_label).__annotations__]
    members += [(head, MEAN_AVERAGE_PRECISION if head in multi_label else MEAN_CLASS_ACCURACY) for head in heads]
    return [scalar_name(head, kind, heads) for head, kind in members if kind != "loss"]


def scalar_name(head: str, what: str, heads: Mapping[str, int]) -> str:
    """Returns `top1` for a single head, `verb/top1` where there are several."""
    return f"{head}/{what}" if len(heads) > 1 else what


def summarise(computed: Mapping[str, Any], heads: Mapping[str, int]) -> dict[str, float]:
    """Renames the output of `Collection.compute()` by `scalar_name`; accuracies in [0, 1], NaN without examples."""
    return {scalar_name(*name.rsplit("__", 1), heads): float(value) for name, value in computed.items()}


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts videos by true class (rows) and predicted class (columns): ids int [N], [N] -> int [C, C]."""
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Returns the accuracy of each class, [C]; NaN for a class without a video."""
    videos = confusion.sum(axis=1)
    return np.diag(confusion) / np.where(videos > 0, videos, np.nan)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns scikit-learn's average precision of each class, float64 [C]; NaN for a class without a video.

    `truth` [N, C] is 1 where a class is present; `scores` [N, C] are on any monotone scale, NaN ranks a video last.
    """
    from sklearn.metrics import average_precision_score  # takes a second, and only multi-label heads need it

    truth, largest = np.asarray(truth) > 0, np.finfo(np.float32).max
    scores = np.nan_to_num(scores, nan=-largest, posinf=largest, neginf=-largest)
    result = np.full(truth.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(axis=0)):
        result[label] = average_precision_score(truth[:, label], scores[:, label])
    return result


def mean_over_present(of_classes: np.ndarray) -> float:
    """Returns the mean of `class_accuracy` or `average_precision` over the classes with a video; NaN without any."""
    present = np.isfinite(of_classes)
    return float(np.mean(of_classes[present])) if present.any() else float("nan")
