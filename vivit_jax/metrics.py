"""Metrics of a data set as clu collections: top-k, confusion, verb/noun/action.

Each is a sum over examples, so updates of any batches merge in any order, and padding (mask 0) adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

ACTION = "action"  # EPIC-Kitchens: the pair of verb and noun


def classes_ahead(logits: jax.Array, labels: jax.Array) -> jax.Array:
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
    """Scores of all pairs of classes: log of the product of the two softmaxes (EPIC-Kitchens' action).

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
        return {"values": (classes_ahead(scores, truth) < k).astype(jnp.float32), "mask": mask}

    return clu_metrics.Average.from_fun(right)


def _loss(head: str) -> type[clu_metrics.Metric]:
    """Mean softmax cross-entropy of a head, without label smoothing."""

    def loss(*, logits: Mapping[str, Any], labels: Mapping[str, Any], mask: Any, **_: Any) -> dict[str, Any]:
        own = jnp.take_along_axis(jax.nn.log_softmax(logits[head]), labels[head][:, None], axis=-1)
        return {"values": -own[:, 0], "mask": mask}

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


def collection(heads: Mapping[str, int]) -> type[clu_metrics.Collection]:
    """The clu collection for a data set's heads.

    Args:
      heads: {head: number of classes}. With the heads `verb` and `noun` there is an `action` too.

    Returns:
      A Collection class whose `single_from_model_output` takes `logits` {head: [B, C]}, `labels` {head: int32 [B]},
      `mask` [B], `index` [B]. Top-5 is left out where there are no more than five classes.
    """
    members: dict[str, type[clu_metrics.Metric]] = {"count": Count}
    for head, classes in heads.items():
        members[f"{head}__loss"] = _loss(head)
        members[f"{head}__confusion"] = _confusion(head)
        for k in (1, 5):
            if k == 1 or classes > k:
                members[f"{head}__top{k}"] = _top_k(k, head)
    if {"verb", "noun"} <= set(heads):
        for k in (1, 5):
            members[f"{ACTION}__top{k}"] = _top_k(k, ("verb", "noun"))
    return clu_metrics.Collection.create(**members)


def accuracy_names(heads: Mapping[str, int]) -> list[str]:
    """The metrics by which a checkpoint can be the best: the names of `summarise` for which higher is better."""
    members = [name.partition("__") for name in collection(heads).__annotations__]
    kinds = [(head, {"confusion": "mean_class_accuracy"}.get(what, what)) for head, _, what in members]
    return [f"{head}/{what}" if len(heads) > 1 else what for head, what in kinds if what not in ("", "loss")]


def summarise(computed: Mapping[str, Any], heads: Mapping[str, int]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What a collection computed, as named Python floats and confusion matrices.

    Args:
      computed: of `Collection.compute()`.
      heads: as given to `collection`.

    Returns:
      Scalars: `top1`, `top5`, `loss`, `mean_class_accuracy` for a single head; `verb/top1` and so on for several, and
      `action/top1`. Accuracies lie in [0, 1]; NaN where no example counted. And {head: int [C, C]}.
    """
    prefix = len(heads) > 1
    scalars, confusion = {}, {}
    for name, value in computed.items():
        head, _, what = name.partition("__")
        if what == "confusion":
            confusion[head] = np.asarray(value)
            what, value = "mean_class_accuracy", mean_class_accuracy(confusion[head])
        if what:
            scalars[f"{head}/{what}" if prefix else what] = float(value)
    return scalars, confusion


def mean_class_accuracy(confusion: np.ndarray) -> float:
    """Mean over the classes that occur of the share that was recognised; `confusion` int [C, C], rows the truth."""
    total = confusion.sum(1)
    seen = total > 0
    return float(np.mean(np.diag(confusion)[seen] / total[seen])) if seen.any() else float("nan")
