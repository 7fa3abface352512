"""The data of a resumed run: classes have the ids of its checkpoints, and the videos are those of its checkpoints."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.data.config import DataConfig
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection.training_set import TrainingSet, relabel
from vivit_jax.utils.class_names import match

# Fields of `config.data` with which a user asks for other videos.
_SELECTION = ("name", "train_split", "mixture", "unknown_classes", "subset")
_DIGESTS = {"videos": "the names or the order of the videos", "labels": "the labels", "records": "the stored frames"}
_ALLOWED = "--config.data.allow_changed=True"


def check_batch_size(experiment: Experiment, metadata: Mapping[str, Any]) -> None:
    """Raises ConfigError, or with `data.allow_changed` warns, where the checkpoint had another batch size.

    The position in the data is step x batch size: clips would be left out, or come twice.
    """
    size, before, step = experiment.batch_size, metadata["config"].get("batch_size"), metadata.get("step", 0)
    if not step or size == before:
        return
    change = f"{abs(size - before) * step} clips are {'left out' if size > before else 'repeated'}"
    message = f"config.batch_size={size}, but the run's checkpoint was trained with {before}: {change}"
    if not experiment.data.allow_changed:
        raise ConfigError(f"{message}. Use {before}, or accept that with {_ALLOWED}")
    logging.warning("%s (%s)", message, _ALLOWED)


def follow(
    train_set: TrainingSet, eval_set: RecordSplit, data: DataConfig, metadata: Mapping[str, Any]
) -> tuple[TrainingSet, RecordSplit]:
    """Returns the data of a run with the class ids of its checkpoint, whose `metadata` are given.

    Raises:
      ConfigError: the classes are others, or, unless `data.allow_changed`, the videos are, though the config asks for
        the same ones.
    """
    if not metadata["data"]:  # converted weights, which the restore refuses
        return train_set, eval_set
    way_out = "put the records of the run back, train in another workdir"
    stored, names, problems = metadata["class_names"], {}, []
    for head in dict.fromkeys([*train_set.class_names, *stored]):
        theirs, ours = list(stored.get(head, ())), list(train_set.class_names.get(head, ()))
        found = match(theirs, ours, "the checkpoint")
        same = found.complete and len(theirs) == len(ours)
        names[head] = theirs if same and found.named else ours
        if not same:
            problems.append(f"head {head!r} has {found.how}")
        elif ours != names[head]:
            logging.warning("Classes of head %r: %s; they keep the ids of the checkpoint.", head, found.how)
    if problems:
        message = "\n".join(["the classes of the data are not those of the run's checkpoint", *problems])
        renamed = metadata["heads"] == train_set.heads
        if not (data.allow_changed and renamed):
            advice = f"{way_out} (--config.init_from.path takes its weights over)"
            raise ConfigError(f"{message}\n{advice}" + (f", or, if only names changed, {_ALLOWED}" if renamed else ""))
        logging.warning("%s (%s)", message, _ALLOWED)
    else:
        train_set, eval_set = train_set.relabelled(names), relabel(eval_set, names)

    before = Experiment.from_config(metadata["config"]).data
    if any(getattr(before, field) != getattr(data, field) for field in _SELECTION):
        return train_set, eval_set  # other data by another config, of which the start warns
    index, digests = metadata["data"].get("index"), train_set.digests()
    changed = [what for name, what in _DIGESTS.items() if index and index[name] != digests[name]]
    if (count := metadata["data"]["examples"]) != train_set.num_videos:
        changed.insert(0, f"the number of videos ({count} -> {train_set.num_videos})")
    if changed:
        message = (
            f"the training data of {data.name} are not those of the run's checkpoint: {', '.join(changed)} changed"
        )
        if not data.allow_changed:
            raise ConfigError(f"{message}; {way_out}, or continue on these with {_ALLOWED}")
        logging.warning("%s (%s)", message, _ALLOWED)
    return train_set, eval_set
