"""Accuracies of the predicted probabilities of a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vivit_jax.evaluation import metrics

_CHUNK = 1 << 24  # scores ranked at a time: pairs of verb and noun are many


def score(
    probabilities: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], heads: Mapping[str, int]
) -> dict[str, float]:
    """Computes top-1 and top-5 of each head and of the action, and the mean average precision of multi-label heads.

    The scores of the action are the products of verb and noun (`metrics.pair_scores`). A true class of probability 0
    counts as wrong even if it is among the five highest.

    Args:
      probabilities: {head: [M, C]}.
      labels: {head: int [M], or [M, C] of a multi-label head, 1 where a class is present}.
      heads: {head: C}.

    Returns:
      Metrics in [0, 1], named as those of an evaluation (`top1`; or `verb/top1`, ..., `action/top1`). NaN for a mean
      average precision without any label. No top-5 where there are five classes or fewer.
    """
    multi_label = {head for head in heads if labels[head].ndim == 2}
    with np.errstate(divide="ignore"):
        logs = {head: np.log(np.asarray(probabilities[head], np.float32)) for head in heads}
    result: dict[str, float] = {}
    truths = {head: labels[head] for head in heads if head not in multi_label}
    for head in multi_label:
        name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
        precision = metrics.average_precision(labels[head], probabilities[head])
        result[name] = metrics.mean_over_present(precision)
    sizes = dict(heads)
    if metrics.has_action(heads, multi_label):
        verb, noun = metrics.PAIR
        sizes[metrics.ACTION] = heads[verb] * heads[noun]
        truths[metrics.ACTION] = labels[verb].astype(np.int64) * heads[noun] + labels[noun]
    for head, truth in truths.items():
        step, ranks = max(1, _CHUNK // sizes[head]), []
        for rows in (slice(start, start + step) for start in range(0, len(truth), step)):
            if head == metrics.ACTION:  # computed in parts
                part = np.asarray(metrics.pair_scores(logs[verb][rows], logs[noun][rows]))
            else:
                part = logs[head][rows]
            own = np.take_along_axis(part, truth[rows, None], axis=1)[:, 0]
            rank = np.asarray(metrics.rank_of_true_class(part, truth[rows]))
            ranks.append(np.where(own > -np.inf, rank, sizes[head]))
        for k in (1, 5):
            if k == 1 or sizes[head] > k:
                result[metrics.scalar_name(head, f"top{k}", heads)] = float(np.mean(np.concatenate(ranks) < k))
    return result
