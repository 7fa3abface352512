"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from absl import logging
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vivit_jax.evaluation import metrics
from vivit_jax.probe.config import ProbeConfig


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A linear probe of one head.

    Attributes:
      probabilities: [M, C] of the evaluated videos; 0 for classes without a training video.
      inverse_penalty: the C that was chosen.
      chosen_by: {C: accuracy on the held-out part, or mean average precision}; empty with a single C.
      converged: whether L-BFGS ended before `max_iterations`.
    """

    probabilities: np.ndarray
    inverse_penalty: float
    chosen_by: dict[float, float]
    converged: bool


def fit(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, settings: ProbeConfig, head: str = "label"
) -> Fitted:
    """Fits one head to standardized training features and applies it; multi-label, one regression for each class.

    Args:
      train: float [N, d].
      labels: int [N], or [N, C] of a multi-label head, 1 where a class is present.
      test: float [M, d].
      classes: C.
      settings: values of C, held-out share, iterations.
      head: its name, for messages.

    Raises:
      ValueError: the training videos have a single class, or are too few to hold some out.
    """
    if not (labels != labels[0]).any():
        raise ValueError(
            f"the {len(labels)} training videos all have the same labels of head {head!r}, so a linear probe has "
            "nothing to separate; give videos of two classes or more (config.data.train_split, config.data.subset)"
        )
    multi_label, grid = labels.ndim == 2, sorted(settings.inverse_penalties)
    held_out = hold_out(labels, settings.held_out_share, settings.seed) if len(grid) > 1 else np.ones(len(labels), bool)
    if not held_out.any():
        raise ValueError(
            f"no class of head {head!r} has two training videos, so none can be held out to choose C among "
            f"{', '.join(map(str, grid))}: give one C (--c={grid[-1]})"
        )
    regression: Any = LogisticRegression(C=grid[0], max_iter=settings.max_iterations)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if multi_label else regression)
    chosen_by: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # logged below, once
        warnings.filterwarnings("ignore", "Label .* is present in", UserWarning)  # classes without an example
        if len(grid) > 1:
            parameter = "onevsrestclassifier__estimator__C" if multi_label else "logisticregression__C"
            split = PredefinedSplit(np.where(held_out, 0, -1))
            search = GridSearchCV(model, {parameter: grid}, scoring=_score, cv=split, error_score="raise")
            search.fit(train, labels)
            chosen_by = dict(zip(grid, map(float, search.cv_results_["mean_test_score"]), strict=True))
            logging.info("Linear probe of %s: score by C on the held-out part %s", head, chosen_by)
            model = search.best_estimator_
        else:
            model.fit(train, labels)
    best = max(grid, key=chosen_by.get) if chosen_by else grid[0]  # of equals the first, with the strongest penalty
    fits = [e for e in model[-1].estimators_ if hasattr(e, "n_iter_")] if multi_label else [model[-1]]
    converged = all(int(np.max(each.n_iter_)) < settings.max_iterations for each in fits)
    if not converged:
        logging.warning(
            "The linear probe of %s with C=%g did not converge in %d iterations, and its accuracy may change with "
            "more: raise --max_iterations, or give a smaller C.", head, best, settings.max_iterations,
        )  # fmt: skip
    probabilities = model.predict_proba(test)
    if not multi_label:
        present, probabilities = probabilities, np.zeros((len(test), classes), probabilities.dtype)
        probabilities[:, model.classes_] = present
    return Fitted(probabilities, best, chosen_by, converged)


def hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Selects the training videos to hold out: a share of each class, at least one, but never all.

    Args:
      labels: int [N]; or [N, C] of a multi-label head, where the share is of all videos.
      share: in (0, 1).
      seed: of the selection.

    Returns:
      bool [N]; all False where no class has two videos.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    groups = [order] if labels.ndim == 2 else [order[labels[order] == label] for label in np.unique(labels)]
    result = np.zeros(len(labels), bool)
    for videos in groups:
        if len(videos) > 1:
            result[videos[: min(max(1, round(share * len(videos))), len(videos) - 1)]] = True
    return result


def _score(model: Any, x: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy; multi-label, the mean average precision."""
    if labels.ndim == 1:
        return float(np.mean(model.predict(x) == labels))
    return float(np.nan_to_num(metrics.mean_over_present(metrics.average_precision(labels, model.predict_proba(x)))))
