"""Fine-tuning on a custom data set: opens the data that settings follow from; says what to conclude from a run."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences, field_of, plain
from vivit_jax.config.finetuning import DERIVED, derive
from vivit_jax.convert import Hints, open_weights
from vivit_jax.data.open import open_data
from vivit_jax.evaluation.results import Result
from vivit_jax.utils import storage

CONCLUSIONS = "conclusions.txt"  # in the workdir


def experiment_of(config: Mapping[str, Any], workdir: epath.PathLike | None = None) -> Experiment:
    """Returns the experiment of a config; with `derive`, builds and opens its data, and fills what it leaves open.

    A run that has a checkpoint in `workdir` keeps the settings that it began with, and needs no weights.
    """
    experiment, fields = Experiment.from_config(config), plain(config)
    data, options = experiment.data, experiment.init_from
    if not experiment.derive:
        return experiment
    if fields["data"]["name"] is None and data.video_dir is None:
        advice = "set --config.data.video_dir=FOLDER, with a folder for each class, or videos and a CSV"
        raise ConfigError(f"which videos? {advice} (docs/data.md)")
    if fields["data"]["name"] is None:
        path = str(storage.absolute(data.video_dir))  # each folder has records of its own
        fields["data"]["name"] = f"videos_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    with distributed.process_0_first():
        train_set, weights = open_data(Experiment.from_config(fields).data)[0], None
    stored = None if workdir is None else checkpointing.latest_metadata(workdir)
    if stored is not None:
        before = Experiment.from_config(stored["config"]).to_dict()
        for path in (*DERIVED, *(f"model.{name}" for name in fields["model"])):
            section, name = field_of(fields, path)
            section[name] = field_of(before, path)[0][name] if section[name] is None else section[name]
    elif options.path is not None:
        with open_weights(options.path, options.format, options.prefix) as opened:
            weights = opened.model_config(Hints(options.grid, options.num_heads))
    measured = ("num_frames", "fps", "height", "width")
    frames, *others = (np.concatenate([getattr(split, name) for split in train_set.splits]) for name in measured)
    fps, height, width = (float(np.nan_to_num(np.nanmedian(values), nan=25.0)) for values in others)
    facts = {"heads": tuple(train_set.heads) or ("label",), "multi_label": train_set.multi_label, "weights": weights}
    derived = derive(fields, videos=len(frames), num_frames=frames, fps=fps, frame_size=(height, width), **facts)
    experiment = Experiment.from_config(derived)

    lengths = f"{frames.min()} to {frames.max()} frames (median {np.median(frames):g}), {width:g} x {height:g} pixels"
    logging.info("%d training videos, %s, %.4g frames per second.", len(frames), lengths, fps)
    for head, names in train_set.class_names.items():
        ids = np.concatenate([split.labels[head].ravel() for split in train_set.splits])
        counts = dict(zip(np.bincount(ids[ids >= 0], minlength=len(names)).tolist(), names, strict=True))
        few, many = min(counts), max(counts)
        uneven = ", 3 to 1 or more: look at the accuracy of each class in the report" * (many >= 3 * few)
        log = logging.warning if uneven else logging.info
        log("Videos of a class of %s: %d (%s) to %d (%s)%s.", head, few, counts[few], many, counts[many], uneven)
    clip, number = derived["input"], derived["model"]["num_frames"]
    fewer = f"{np.mean(frames < number):.0%} of the videos have fewer than {number} frames"
    how = "one from each of as many segments" if clip["sampling"] == "segments" else f"with stride {clip['stride']}"
    logging.info("Clips of %d frames, %s: %s.", number, how, fewer)
    shown = "; ".join(differences(plain(config), derived)).replace("None -> ", "")
    logging.info("Derived settings (config.FIELD=VALUE changes one): %s", shown)
    return experiment


def conclude(
    workdir: epath.Path, experiment: Experiment, trained: Result, held_out: Result, names: Mapping[str, Any]
) -> None:
    """Writes the accuracy of each head, chance, the most confused classes and what to try next into the workdir.

    `trained` and `held_out` are evaluations on training videos and on others, both without augmentation.
    """
    from scipy.stats import binomtest  # takes half a second

    lines = []
    for head, matrix in held_out.confusion.items():
        videos, share = matrix.sum(), lambda counts: np.trace(counts) / counts.sum()
        train, test, chance = share(trained.confusion[head]), share(matrix), matrix.sum(axis=1).max() / videos
        low, high = binomtest(int(np.trace(matrix)), int(videos)).proportion_ci(method="wilson")
        interval = f"{test:.1%} of {videos} held-out videos (95 % interval {low:.1%} to {high:.1%})"
        seen = f"{train:.1%} of {trained.confusion[head].sum()} training videos"
        lines += [f"Accuracy of {head}: {interval}, {seen}; the largest class is {chance:.1%}."]
        wrong = matrix - np.diag(np.diag(matrix))
        true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
        if wrong.any():
            count = f"{wrong[true, taken]} of {matrix[true].sum()} videos"
            lines += [f"Most confused: {names[head][true]} taken for {names[head][taken]}, {count}."]
        lines += [f"Try next: {_advice(experiment, train, test, chance)}."]
    if jax.process_index() == 0:
        storage.write(workdir / CONCLUSIONS, "\n".join(lines))


def _advice(experiment: Experiment, train: float, test: float, chance: float) -> str:
    """Returns the next step that accuracies on training and held-out videos suggest."""
    pretrained, depth = experiment.init_from.path, experiment.model["stochastic_depth_rate"] or 0
    weights = "pretrained weights (config.init_from.path; docs/weights.md)"
    if train < min(0.8, chance + 0.5 * (1 - chance)):
        name = "num_epochs" if experiment.num_steps is None else "num_steps"
        patience = ", config.evaluation.patience=0" * (experiment.evaluation.patience > 0)  # it may have stopped early
        longer = f"train longer (config.{name}={2 * getattr(experiment, name):g}{patience})"
        return longer + (" or with a higher learning rate" if pretrained else f", or start from {weights}")
    if train - test > 0.15:
        more = f"config.model.stochastic_depth_rate={depth + 0.1:.1f}, config.augment.rand_augment_layers=2"
        return ("" if pretrained else f"{weights}, ") + f"more regularisation ({more}), more videos"
    if test > 0.97:
        return "a test split of your own, since these videos chose the checkpoint (config.data.eval_split=test)"
    return "more videos, a larger model or larger frames: training and held-out accuracy are close"
