"""What a probe fits to frozen features: weighted k-NN and logistic regression; their accuracies."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vivit_jax.evaluation import metrics
from vivit_jax.probe.features import ProbeConfig

MAX_ITERATIONS = 1000  # of L-BFGS, for each fit
HELD_OUT = 0.2  # of the training videos of each class
_CHUNK = 1 << 24  # scores of actions ranked at a time: pairs of verb and noun are many


def knn_votes(
    train: np.ndarray,
    labels: Mapping[str, np.ndarray],
    heads: Mapping[str, int],
    test: np.ndarray,
    settings: ProbeConfig,
) -> dict[int, dict[str, np.ndarray]]:
    """Classifies by weighted k-NN as DINO does (Caron et al., arXiv:2104.14294, after Wu et al., arXiv:1805.01978).

    The k training videos of highest cosine similarity s vote for their classes with weight exp(s / temperature).

    `train` and `test` are float [N, d], [M, d]; `labels` {head: int [N], or [N, C] of a multi-label head, 1 where a
    class is present}; `heads` {head: C}. Returns {k: {head: float64 [M, C]}}: the share of the votes for each class, in
    [0, 1]; multi-label, for videos that have it. ValueError where there are fewer training videos than k.
    """
    if (k := max(settings.neighbours)) > len(train):
        raise ValueError(f"k-NN with k={k}, but {len(train)} training videos are readable: --k=K or --method=linear")
    # Weights relative to the nearest neighbour's: the shares are the same, and exp is in range at any temperature.
    options = {"weights": lambda s: np.exp((s[:, :1] - s.astype(float)) / settings.temperature), "metric": "cosine"}
    present = [y > 0 if y.ndim == 2 else np.eye(heads[head], dtype=bool)[y] for head, y in labels.items()]
    ends, targets, result = np.cumsum([each.shape[1] for each in present]), np.concatenate(present, axis=1), {}
    for k in settings.neighbours:
        votes = KNeighborsRegressor(k, algorithm="brute", **options).fit(train, targets).predict(test)
        result[k] = dict(zip(labels, np.split(votes, ends[:-1], axis=1), strict=True))
    return result


def fit_linear(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, settings: ProbeConfig, head: str = "label"
) -> tuple[np.ndarray, float]:
    """Fits one head to standardized training features and applies it; multi-label, one regression for each class.

    `train` and `test` are float [N, d], [M, d]; `labels` int [N], or [N, C] of a multi-label head, 1 where a class is
    present; `head` is its name, for messages. Returns the probabilities [M, C], 0 for classes without a training video,
    and the C of the penalty: of several the one with the best score on held-out videos.
    """
    multi_label, grid = labels.ndim == 2, sorted(settings.inverse_penalties)

    regression: Any = LogisticRegression(max_iter=MAX_ITERATIONS)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if multi_label else regression)
    penalty = f"{'onevsrestclassifier__estimator' if multi_label else 'logisticregression'}__C"
    best = grid[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # logged below, once
        warnings.filterwarnings("ignore", "Label .* is present in", UserWarning)  # classes without an example
        warnings.filterwarnings("ignore", "No positive class", UserWarning)  # among the held-out videos
        if len(grid) > 1:
            held_out = hold_out(labels, HELD_OUT)
            if not held_out.any():
                problem = f"no class of head {head!r} has two training videos, so none can be held out to choose C"
                raise ValueError(f"{problem} among {', '.join(map(str, grid))}: give one C (--c={grid[-1]})")
            scoring = "average_precision" if multi_label else "accuracy"
            split = PredefinedSplit(held_out.astype(int) - 1)  # -1: never held out
            search = GridSearchCV(model, {penalty: grid}, scoring=scoring, cv=split, refit=False).fit(train, labels)
            scores = dict(zip(grid, search.cv_results_["mean_test_score"].tolist(), strict=True))
            logging.info("Linear probe of %s: score by C on the held-out part %s", head, scores)
            best = search.best_params_[penalty]  # of equals the first, with the strongest penalty
        model.set_params(**{penalty: best}).fit(train, labels)
    fits = [e for e in model[-1].estimators_ if hasattr(e, "n_iter_")] if multi_label else [model[-1]]
    if any(int(np.max(each.n_iter_)) >= MAX_ITERATIONS for each in fits):
        problem = "The linear probe of %s with C=%g did not converge in %d iterations; a smaller C would."
        logging.warning(problem, head, best, MAX_ITERATIONS)
    probabilities = model.predict_proba(test)
    if not multi_label:
        present, probabilities = probabilities, np.zeros((len(test), classes), probabilities.dtype)
        probabilities[:, model.classes_] = present
    return probabilities, best


def hold_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Selects the training videos to hold out: a share in (0, 1) of each class, at least one, but never all.

    Labels: int [N]; multi-label [N, C], with a share of all videos. Returns bool [N], False if no class has two.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    groups = [order] if labels.ndim == 2 else [order[labels[order] == label] for label in np.unique(labels)]
    result = np.zeros(len(labels), bool)
    for videos in groups:
        if len(videos) > 1:
            result[videos[: min(max(1, round(share * len(videos))), len(videos) - 1)]] = True
    return result


def score(
    probabilities: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], heads: Mapping[str, int]
) -> dict[str, float]:
    """Computes top-1 and top-5 of each head and of the action, and the mean average precision of multi-label heads.

    They lie in [0, 1], and are named as those of an evaluation. The scores of the action are the products of verb and
    noun (`metrics.pair_scores`). A true class of probability 0 counts as wrong even if it is among the five highest.

    `probabilities` is {head: [M, C]}, `labels` and `heads` as in `knn_votes`.
    """
    multi_label = {head for head in heads if labels[head].ndim == 2}
    with np.errstate(divide="ignore"):
        logs = {head: np.log(np.asarray(probabilities[head], np.float32)) for head in heads}
    result = {}
    for head in multi_label:
        name = metrics.scalar_name(head, metrics.MEAN_AVERAGE_PRECISION, heads)
        result[name] = metrics.mean_over_present(metrics.average_precision(labels[head], probabilities[head]))
    for head, classes in metrics.ranked_heads(heads, multi_label).items():
        count, ranks = max(1, _CHUNK // classes), []
        for first in range(0, len(next(iter(logs.values()))), count):
            part = ({name: x[first : first + count] for name, x in each.items()} for each in (logs, labels))
            ranks.append(_ranks(*map(np.asarray, metrics.scores_and_truth(head, *part))))
        for k in (1, 5):
            if k == 1 or classes > k:
                result[metrics.scalar_name(head, f"top{k}", heads)] = float(np.mean(np.concatenate(ranks) < k))
    return result


def _ranks(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the 0-based rank of the true class, [M]; C, the last, for one of probability 0, a score of -inf."""
    own = np.take_along_axis(scores, truth[:, None], axis=1)[:, 0]
    return np.where(own > -np.inf, metrics.rank_of_true_class(scores, truth), scores.shape[1])
