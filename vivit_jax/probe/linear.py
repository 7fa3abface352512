"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from absl import logging
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vivit_jax.evaluation import metrics
from vivit_jax.probe.config import ProbeConfig


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A linear probe of one head.

    Attributes:
      probabilities: [M, C] in [0, 1] of the evaluated videos; 0 for classes that no training video has.
      inverse_penalty: the C that was taken.
      chosen_by: {C: accuracy, or mean average precision of several labels at once, on the held-out part}; {} where
        there was one C only.
      converged: L-BFGS ended before its last iteration.
    """

    probabilities: np.ndarray
    inverse_penalty: float
    chosen_by: dict[float, float]
    converged: bool


def fit(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, settings: ProbeConfig, head: str = "label"
) -> Fitted:
    """Fits one head on the training videos and applies it to others.

    Features are standardised by mean and deviation of what is fitted to: of the training videos without the held-out
    part while C is chosen, then of all of them. Several labels at once: one regression a class.

    Args:
      train: float [N, d].
      labels: int [N], or [N, C], 1 for each label that holds.
      test: float [M, d].
      classes: C.
      settings: the choices of C, and how it is chosen.
      head: for messages.

    Raises:
      ValueError: the training videos are all of one class, or too few to hold some out.
    """
    several = labels.ndim == 2
    if not (labels != labels[0]).any():
        raise ValueError(
            f"the {len(labels)} training videos all have the same labels of head {head!r}: there is nothing that a "
            "linear probe could tell apart; give videos of two classes or more (config.data.train_split, "
            "config.data.subset)"
        )
    grid, scores = sorted(settings.inverse_penalties), {}
    if len(grid) > 1:
        held_out = hold_out(labels, settings.held_out_share, settings.seed)
        if not held_out.any():
            raise ValueError(
                f"no class of head {head!r} has two training videos, so none can be held out to choose C among "
                f"{', '.join(map(str, grid))}: give one C (--c={grid[-1]})"
            )
        for penalty in grid:
            made, _ = _regression(train[~held_out], labels[~held_out], penalty, settings.max_iterations)
            found = _probabilities(made, train[held_out], classes, several)
            scores[penalty] = _score(found, labels[held_out], several)
            logging.info("Linear probe of %s, C=%g: %.4f on the held-out part", head, penalty, scores[penalty])
    best = max(grid, key=lambda penalty: scores[penalty]) if scores else grid[0]  # of equals, the strongest penalty
    made, converged = _regression(train, labels, best, settings.max_iterations)
    if not converged:
        logging.warning(
            "The linear probe of %s with C=%g did not converge in %d iterations, so another number of them may give "
            "another accuracy: allow more (--max_iterations), or give a smaller C.",
            head, best, settings.max_iterations,
        )  # fmt: skip
    return Fitted(_probabilities(made, test, classes, several), best, scores, converged)


def hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which training videos are held out: of each class its share, rounded, but at least one, and never the last one.

    Args:
      labels: int [N]; or [N, C] of several labels at once, where the share is of all videos.
      share: in (0, 1).
      seed: of the choice.

    Returns:
      bool [N]; all False where no class has two videos.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    groups = [order] if labels.ndim == 2 else [order[labels[order] == number] for number in np.unique(labels)]
    result = np.zeros(len(labels), bool)
    for members in groups:
        if len(members) > 1:
            result[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return result


def _regression(x: np.ndarray, y: np.ndarray, penalty: float, iterations: int) -> tuple[Any, bool]:
    """(fitted pipeline, whether it converged)."""
    model: Any = LogisticRegression(C=penalty, max_iter=iterations)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(model) if y.ndim == 2 else model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by the caller, once
        warnings.filterwarnings("ignore", "Label .* is present in", UserWarning)  # classes without an example
        model.fit(x, y)
    last = model[-1]
    fits = [last] if y.ndim == 1 else [e for e in last.estimators_ if hasattr(e, "n_iter_")]
    return model, all(int(np.max(each.n_iter_)) < iterations for each in fits)


def _probabilities(model: Any, x: np.ndarray, classes: int, several: bool) -> np.ndarray:
    """[M, C]; 0 for classes that were not there when fitted."""
    found = model.predict_proba(x)
    if several:
        return found
    result = np.zeros((len(x), classes), found.dtype)
    result[:, model.classes_] = found
    return result


def _score(found: np.ndarray, labels: np.ndarray, several: bool) -> float:
    if several:
        return float(np.nan_to_num(metrics.mean_over_present(metrics.average_precision(labels, found))))
    return float(np.mean(found.argmax(axis=1) == labels))
