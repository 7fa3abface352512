"""k-NN and linear probes of the frozen features of a checkpoint (`python -m vivit_jax.probe`).

The model computes the features of every training and evaluation video once; they are cached in OUT/features. On them
the probe fits a weighted k-NN and a logistic regression. The model itself is not trained.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import distributed, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data.open import open_data
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.probe.features import Features, ProbeConfig, extract, labels_of, restore
from vivit_jax.utils import storage, tables
from vivit_jax.utils.trees import finite_or_none

RESULT_FILE = "probe.json"


def probe(
    experiment: Experiment,
    checkpoint: epath.PathLike,
    workdir: epath.PathLike,
    settings: ProbeConfig | None = None,
    *,
    which: str = "best",
) -> dict[str, Any] | None:
    """Probes a checkpoint: fits to the training split of the config, measures on its evaluation split.

    All processes compute features; the first fits. It holds float32 [videos, d] of each split, and about twice the
    training features more while it fits the linear probe.

    Of `experiment` it takes `data`, `input`, `mesh`, batch size and dtype of `evaluation`; for weights also `model` and
    `init_from`. `checkpoint` is a run, a folder of steps, one step; or pretrained weights in any known format; `which`
    the 'best' or 'latest' step of a run. `workdir` gets `probe.json`, and `features/` for the next time.

    Returns the content of `probe.json` (with NaN where that has null); None on all processes but the first. `results`
    is {method: {metric: value}} with the methods `knn/K` and `linear` and the metrics of `classifiers.score`.

    Raises CheckpointError, ConversionError or FileNotFoundError where checkpoint, weights or data set are missing or
    damaged; ValueError for videos of a single class, too few for k-NN, or all unreadable, and for non-finite features.
    """
    settings = settings or ProbeConfig()
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    with distributed.process_0_first():
        train_set, eval_set = open_data(experiment.data)
    check_classes(train_set.splits, eval_set)
    # Features, by all processes.
    with jax.set_mesh(mesh):
        model, params, name = restore(experiment, checkpoint, mesh, which)
        splits = (*train_set.splits, eval_set)
        features = extract(splits, model, params, name, mesh, experiment, settings, workdir)
    if jax.process_index() != 0:
        return None
    parts = {"train": (features[:-1], train_set.splits), "held_out": (features[-1:], [eval_set])}
    videos = {}
    for part, (of_part, _) in parts.items():
        readable = np.concatenate([each.readable for each in of_part])
        unreadable, cached = int((~readable).sum()), all(each.cached for each in of_part)
        videos[part] = {"videos": len(readable), "unreadable": unreadable, "cached": cached}
        if unreadable:
            logging.warning("%d of %d videos (%s) cannot be read and do not count.", unreadable, len(readable), part)
    # Probes, on the features of the readable videos.
    from vivit_jax.probe.classifiers import fit_linear, knn_votes, score  # imports scikit-learn

    (x, y), (test_x, test_y) = (_join(*part) for part in parts.values())
    heads, results, fitted = eval_set.heads, {}, {}
    if "knn" in settings.methods:
        votes = knn_votes(x, y, heads, test_x, settings)
        results |= {f"knn/{k}": score(shares, test_y, heads) for k, shares in votes.items()}
    if "linear" in settings.methods:
        fitted = {head: fit_linear(x, y[head], test_x, classes, settings, head) for head, classes in heads.items()}
        results["linear"] = score({head: probabilities for head, (probabilities, _) in fitted.items()}, test_y, heads)
    views = [settings.temporal_views, settings.spatial_views]
    result = {
        "checkpoint": name,
        "data": {"name": experiment.data.name, "train": str(train_set), "held_out": eval_set.name},
        "features": {"dimension": x.shape[1], "views": views, **videos},
        "temperature": settings.temperature,
        "results": results,
        "linear": {head: {"c": penalty} for head, (_, penalty) in fitted.items()},
    }
    storage.write(epath.Path(workdir) / RESULT_FILE, json.dumps(finite_or_none(result), indent=2))
    return result


def check_classes(train_splits: Sequence[RecordSplit], eval_set: RecordSplit) -> None:
    """Raises ValueError where videos have a single class; warns of evaluated classes without a training video."""
    for head, names in eval_set.class_names.items():
        trained = {int(i) for split in train_splits for i in np.unique(split.labels[head]) if i >= 0}
        evaluated = {int(i) for i in np.unique(eval_set.labels[head]) if i >= 0}
        for kind, present in (("training", trained), ("evaluated", evaluated)):
            if len(present) < 2 and head not in eval_set.multi_label:
                classes = f"only the class {names[min(present)]!r}" if present else "no class"
                advice = "see config.data.train_split, config.data.eval_split and config.data.subset"
                problem = f"the {kind} videos have {classes} of head {head!r}"
                raise ValueError(f"{problem}, so there is nothing to separate; {advice}")
        if unseen := [names[i] for i in sorted(evaluated - trained)]:
            listed = f"{', '.join(map(repr, unseen[:8]))}{', ...' if len(unseen) > 8 else ''}"
            problem = "%d classes of head %r have evaluated videos, which count as wrong, but no training video (%s)"
            logging.warning(problem, len(unseen), head, listed)


def _join(features: Sequence[Features], splits: Sequence[RecordSplit]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns features [N, d] and labels {head: [N] or [N, C]} of the readable videos of some splits."""
    parts = [labels_of(split, of_split.readable) for split, of_split in zip(splits, features, strict=True)]
    labels = {head: np.concatenate([part[head] for part in parts]) for head in splits[0].heads}
    return np.concatenate([of_split.values[of_split.readable] for of_split in features]), labels


def table(result: Mapping[str, Any]) -> str:
    """Formats the results of `probe`: a line for each method, in per cent."""
    names = list(next(iter(result["results"].values())))
    features, split = result["features"], result["data"]["held_out"]
    views = "x".join(map(str, features["views"]))
    lines = [
        f"{result['checkpoint']}: {features['dimension']} numbers a video, {views} views; "
        f"{features['train']['videos']} training videos, {features['held_out']['videos']} of {split}",
    ]
    rows = ([method, *(f"{values[name]:.1%}" for name in names)] for method, values in result["results"].items())
    lines.append(tables.to_markdown(["method", *names], rows))
    if result["linear"]:
        lines.append("C: " + ", ".join(f"{head} {fit['c']:g}" for head, fit in result["linear"].items()))
    return "\n".join(lines)
