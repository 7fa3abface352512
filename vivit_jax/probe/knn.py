"""Classification by the nearest training videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize


def votes(
    train: np.ndarray,
    labels: Mapping[str, np.ndarray],
    classes: Mapping[str, int],
    test: np.ndarray,
    neighbours: Sequence[int] = (10, 20),
    temperature: float = 0.07,
) -> dict[int, dict[str, np.ndarray]]:
    """Weighted k-NN as DINO has it (Caron et al., arXiv:2104.14294, after Wu et al., arXiv:1805.01978).

    The k training videos of the highest cosine similarity s vote for their classes, each with exp(s / temperature).

    Args:
      train: float [N, d].
      labels: {head: int [N], or [N, C], 1 for each of several labels at once}.
      classes: {head: C}.
      test: float [M, d].
      neighbours: values of k.
      temperature: greater than 0.

    Returns:
      {k: {head: float64 [M, C]}}: share in [0, 1] of the votes that each class got. Several labels at once: share of
      the votes of videos that have the label.

    Raises:
      ValueError: k greater than N.
    """
    if max(neighbours) > len(train):
        raise ValueError(
            f"k-NN with k={max(neighbours)} of {len(train)} training videos: there are not so many neighbours; give a "
            f"smaller --k (at most {len(train)}), or more training videos"
        )
    # On the unit sphere |a - b|^2 = 2 - 2 cos: the nearest are the most similar.
    index = NearestNeighbors(n_neighbors=max(neighbours), algorithm="brute", metric="euclidean").fit(normalize(train))
    distance, found = index.kneighbors(normalize(test))
    # Relative to the nearest one's, which changes no share, and keeps exp in range at any temperature.
    similarity = 1 - np.asarray(distance, np.float64) ** 2 / 2
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    result: dict[int, dict[str, np.ndarray]] = {}
    for k in neighbours:
        share = weights[:, :k] / weights[:, :k].sum(axis=1, keepdims=True)
        result[k] = {head: _gather(share, found[:, :k], labels[head], classes[head]) for head in classes}
    return result


def _gather(share: np.ndarray, found: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Votes [M, k] of neighbours [M, k] -> votes of classes [M, C]."""
    total = np.zeros((len(share), classes))
    for place in range(share.shape[1]):  # neighbour by neighbour, so that memory does not grow with k
        theirs = labels[found[:, place]]
        if labels.ndim == 2:
            total += share[:, place, None] * theirs
        else:
            total[np.arange(len(share)), theirs] += share[:, place]
    return total
