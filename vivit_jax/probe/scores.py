"""Accuracies of what a probe says of the evaluated videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vivit_jax.evaluation import metrics

_ROW_NUMBERS = 1 << 24  # scores that are ranked at a time: pairs of verb and noun are many


def score(
    probabilities: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], heads: Mapping[str, int]
) -> dict[str, float]:
    """Top-1 and top-5 of each head and of the action; mean average precision of heads with several labels at once.

    The action's scores are the products of verb's and noun's (`metrics.pair_scores`). A class of probability 0, for
    which nothing spoke, is never counted as recognised, be it among the five.

    Args:
      probabilities: {head: [M, C] in [0, 1]}.
      labels: {head: int [M], or [M, C], 1 for each label that holds}.
      heads: {head: C}.

    Returns:
      The names of an evaluation (`top1`; `verb/top1`, ..., `action/top1`), each in [0, 1]; NaN for a mean average
      precision without any label. Top-5 is left out where there are no more than five classes.
    """
    multi_label = {head for head in heads if labels[head].ndim == 2}
    with np.errstate(divide="ignore"):
        logs = {head: np.log(np.asarray(probabilities[head], np.float32)) for head in heads}
    result: dict[str, float] = {}
    for head, classes in heads.items():
        if head in multi_label:
            name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
            of_classes = metrics.average_precision(labels[head], probabilities[head])
            result[name] = metrics.mean_over_present(of_classes)
            continue
        ranks = np.concatenate([_ranks(logs[head][rows], labels[head][rows]) for rows in _rows(labels[head], classes)])
        result |= _accuracies(head, ranks, classes, heads)
    if metrics.has_action(heads, multi_label):
        first, second = metrics.PAIR
        pairs = heads[first] * heads[second]
        truth = labels[first].astype(np.int64) * heads[second] + labels[second]
        ranks = [
            _ranks(np.asarray(metrics.pair_scores(logs[first][rows], logs[second][rows])), truth[rows])
            for rows in _rows(truth, pairs)
        ]
        result |= _accuracies(metrics.ACTION, np.concatenate(ranks), pairs, heads)
    return result


def _rows(labels: np.ndarray, classes: int) -> Iterator[slice]:
    step = max(1, _ROW_NUMBERS // classes)
    return (slice(low, low + step) for low in range(0, len(labels), step))


def _ranks(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int [B]: classes ahead of the true one; as many as there are classes where nothing speaks for the true one."""
    own = np.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    return np.where(own > -np.inf, np.asarray(metrics.rank_of_true_class(logs, labels)), logs.shape[1])


def _accuracies(head: str, ranks: np.ndarray, classes: int, heads: Mapping[str, int]) -> dict[str, float]:
    return {
        metrics.scalar_name(head, f"top{k}", heads): float(np.mean(ranks < k)) for k in (1, 5) if k == 1 or classes > k
    }
