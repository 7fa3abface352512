"""k-nearest-neighbour classification of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from sklearn.neighbors import NearestNeighbors


def votes(
    train: np.ndarray,
    labels: Mapping[str, np.ndarray],
    classes: Mapping[str, int],
    test: np.ndarray,
    neighbours: Sequence[int] = (10, 20),
    temperature: float = 0.07,
) -> dict[int, dict[str, np.ndarray]]:
    """Classifies by weighted k-NN as DINO does (Caron et al., arXiv:2104.14294, after Wu et al., arXiv:1805.01978).

    The k training videos of highest cosine similarity s vote for their classes with weight exp(s / temperature).

    Args:
      train: float [N, d].
      labels: {head: int [N], or [N, C] of a multi-label head, 1 where a class is present}.
      classes: {head: C}.
      test: float [M, d].
      neighbours: values of k.
      temperature: positive.

    Returns:
      {k: {head: float64 [M, C]}}: share of the votes for each class, in [0, 1]; multi-label, for videos that have it.

    Raises:
      ValueError: k exceeds N.
    """
    if max(neighbours) > len(train):
        raise ValueError(
            f"k-NN with k={max(neighbours)} of {len(train)} training videos: there are not so many neighbours; give a "
            f"smaller --k (at most {len(train)}), or more training videos"
        )
    index = NearestNeighbors(n_neighbors=max(neighbours), algorithm="brute", metric="cosine").fit(train)
    distances, nearest = index.kneighbors(test)
    # Relative to the nearest neighbour, which leaves the shares unchanged and exp in range at any temperature.
    weights = np.exp((distances[:, :1] - np.asarray(distances, np.float64)) / temperature)
    result: dict[int, dict[str, np.ndarray]] = {k: {} for k in neighbours}
    for head, y in labels.items():
        rows = np.arange(len(train))
        one_hot = y if y.ndim == 2 else (np.ones(len(y)), (rows, y))
        targets = scipy.sparse.csr_array(one_hot, shape=(len(train), classes[head]))
        for k in neighbours:
            shares = weights[:, :k] / weights[:, :k].sum(axis=1, keepdims=True)
            starts = np.arange(0, shares.size + 1, k)
            votes_of_videos = scipy.sparse.csr_array(
                (shares.ravel(), nearest[:, :k].ravel(), starts), shape=(len(test), len(train))
            )
            result[k][head] = (votes_of_videos @ targets).toarray()
    return result
