"""A quick look at a checkpoint: how well frozen features tell the classes of a data set apart.

    python -m vivit_jax.probe --checkpoint=RUN_OR_WEIGHTS --config=configs/moving_digits.py --workdir=OUT

The features of every training and held-out video are computed once and kept in OUT/features; on them a weighted k-NN
and a logistic regression are tried. Nothing of the model is trained, so it takes one pass over the videos.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data.open import open_data
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.probe import knn, linear
from vivit_jax.probe.config import FEATURES, METHODS, UNSEEN, ProbeConfig, parse_views
from vivit_jax.probe.features import Extractor, Features, labels_of
from vivit_jax.probe.restore import restore
from vivit_jax.probe.scores import score

__all__ = ["FEATURES", "METHODS", "RESULT_FILE", "UNSEEN", "ProbeConfig", "parse_views", "probe", "table"]

RESULT_FILE = "probe.json"


def probe(
    experiment: Experiment,
    checkpoint: epath.PathLike,
    workdir: epath.PathLike,
    settings: ProbeConfig | None = None,
    *,
    which: str = "best",
) -> dict[str, Any] | None:
    """Probes a checkpoint on the config's data set: fitted to its training split, measured on its evaluation split.

    Memory of the host: float32 [videos, d] for each split, and while the linear probe is fitted about two more copies
    of the training videos'. The features are computed on the mesh by all processes, the rest by the first.

    Args:
      experiment: `data`, `input`, `mesh`, and `evaluation.batch_size`; for weights of others `model` and `init_from`
        too. A checkpoint of a run of ours says itself which model it is of.
      checkpoint: a run, a folder of steps, one step; or weights of others in any known format.
      workdir: gets `probe.json`, and `features/` for the next time.
      settings: of the probe; None: the defaults.
      which: 'best' or 'latest' step of a run.

    Returns:
      None on all processes but the first. `checkpoint`, `data`, `features` (kind, dimension, views, videos of each
      split, unreadable ones, whether they were on disk), `results`, {method: {metric: value}} with the methods `knn/K`
      and `linear` and the names of `scores.score`; `linear`: {head: C, how it was chosen, converged}. JSON-safe, but
      for NaN, which `probe.json` has as null.

    Raises:
      CheckpointError, ConversionError: the weights are damaged or do not fit.
      FileNotFoundError: no weights, or no data set; the message says what belongs where.
      ValueError: settings, mesh or batch size out of range; videos with which a probe cannot be fitted or measured.
    """
    settings = settings or ProbeConfig()
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")
    training, held_out = open_data(experiment.data)
    if "knn" in settings.methods and max(settings.neighbours) > training.num_videos:
        raise ValueError(
            f"k-NN with k={max(settings.neighbours)}, but there are {training.num_videos} training videos: give a "
            "smaller --k, or --method=linear"
        )
    check_classes(training.splits, held_out, settings)
    with jax.set_mesh(mesh):
        model, params, name = restore(experiment, checkpoint, workdir, mesh, which=which)
        spec = experiment.clip_spec(model.config)
        extract = Extractor(model, params, name, mesh, experiment, spec, settings, workdir)
        made = [extract(split) for split in (*training.splits, held_out)]
    if jax.process_index() != 0:
        return None
    (x, y), (test_x, test_y) = (_joined(made[:-1], training.splits), _joined(made[-1:], [held_out]))
    found = _try(x, y, test_x, test_y, held_out.heads, settings)
    videos = {
        part: {"videos": len(readable), "unreadable": int((~readable).sum()), "cached": all(f.cached for f in of)}
        for part, of in (("train", made[:-1]), ("held_out", made[-1:]))
        for readable in [np.concatenate([f.readable for f in of])]
    }
    for part, of in videos.items():
        if of["unreadable"]:
            told = "%d of the %d videos (%s) cannot be read and do not count."
            logging.warning(told, of["unreadable"], of["videos"], part)
    result = {
        "checkpoint": name,
        "data": {"name": experiment.data.name, "train": str(training), "held_out": held_out.name},
        "features": {
            "kind": settings.features,
            "dimension": x.shape[1],
            "views": [settings.temporal_views, settings.spatial_views],
            **videos,
        },
        "temperature": settings.temperature,
        **found,
    }
    path = epath.Path(workdir) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(result), indent=2))
    return result


def check_classes(training: Sequence[RecordSplit], held_out: RecordSplit, settings: ProbeConfig) -> None:
    """Raises ValueError where the videos of a split cannot be told apart, or where some can only be got wrong.

    Args:
      training: splits with the classes of `held_out`.
      held_out: what is measured on.
      settings: whether classes that no training video has are refused.
    """
    for head, names in held_out.class_names.items():
        known = {int(i) for split in training for i in np.unique(split.labels[head]) if i >= 0}
        asked = {int(i) for i in np.unique(held_out.labels[head]) if i >= 0}
        for what, present in (("training", known), ("evaluated", asked)):
            if len(present) < 2 and head not in held_out.multi_label:
                one = f"only the class {names[min(present)]!r}" if present else "no class"
                raise ValueError(
                    f"the {what} videos have {one} of head {head!r}: nothing can be told apart; see "
                    "config.data.train_split, config.data.eval_split and config.data.subset"
                )
        unseen = [names[i] for i in sorted(asked - known)]
        if not unseen:
            continue
        shown = f"{', '.join(map(repr, unseen[:8]))}{', ...' if len(unseen) > 8 else ''}"
        told = f"{len(unseen)} classes of head {head!r} have evaluated videos but no training video ({shown})"
        if settings.unseen_classes == "error":
            raise ValueError(f"{told}; take more training videos, or count theirs as wrong (--unseen_classes=wrong)")
        logging.warning("%s: they count as wrong.", told)


def _joined(features: Sequence[Features], splits: Sequence[RecordSplit]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features [N, d] and labels {head: [N] or [N, C]} of the readable videos of some splits."""
    parts = [labels_of(split, of.readable) for split, of in zip(splits, features, strict=True)]
    labels = {head: np.concatenate([part[head] for part in parts]) for head in splits[0].heads}
    return np.concatenate([of.values[of.readable] for of in features]), labels


def _try(
    x: np.ndarray,
    y: Mapping[str, np.ndarray],
    test_x: np.ndarray,
    test_y: Mapping[str, np.ndarray],
    heads: Mapping[str, int],
    settings: ProbeConfig,
) -> dict[str, Any]:
    """`results` and `linear` of `probe`."""
    results: dict[str, dict[str, float]] = {}
    told: dict[str, Any] = {}
    if "knn" in settings.methods:
        voted = knn.votes(x, y, heads, test_x, settings.neighbours, settings.temperature)
        results |= {f"knn/{k}": score(shares, test_y, heads) for k, shares in voted.items()}
    if "linear" in settings.methods:
        fitted = {head: linear.fit(x, y[head], test_x, classes, settings, head) for head, classes in heads.items()}
        results["linear"] = score({head: one.probabilities for head, one in fitted.items()}, test_y, heads)
        told = {
            head: {
                "c": one.inverse_penalty,
                "chosen_by": {str(c): value for c, value in one.chosen_by.items()},
                "converged": one.converged,
            }
            for head, one in fitted.items()
        }
    return {"results": results, "linear": told}


def _finite(tree: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(tree, Mapping):
        return {name: _finite(value) for name, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def table(result: Mapping[str, Any]) -> str:
    """The results of `probe` as text: a line for each method, percent."""
    names = list(dict.fromkeys(name for values in result["results"].values() for name in values))
    features, chosen, split = result["features"], result["linear"], result["data"]["held_out"]
    views = "x".join(map(str, features["views"]))
    lines = [
        f"{result['checkpoint']}: {features['kind']}, {features['dimension']} numbers a video, {views} views; "
        f"{features['train']['videos']} training videos, {features['held_out']['videos']} of {split}",
        f"{'':12}" + "".join(f"{name:>{max(len(name) + 2, 8)}}" for name in names),
    ]
    for method, values in result["results"].items():
        kind, _, k = method.partition("/")
        shown = f"k-NN, k={k}" if k else kind
        cells = (f"{values[name]:.1%}".rjust(max(len(name) + 2, 8)) for name in names)
        lines.append(f"{shown:12}" + "".join(cells))
    if chosen:
        lines.append("C: " + ", ".join(f"{head} {one['c']:g}" for head, one in chosen.items()))
    return "\n".join(lines)
