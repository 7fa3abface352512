"""A resumed run has the classes and the videos of its checkpoint."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.experiment import experiment
from vivit_jax.config.experiment import ConfigError
from vivit_jax.data.open import open_data
from vivit_jax.data.selection.training_set import TrainingSet, relabel
from vivit_jax.train.setup import check_resumed_batch_size, follow_checkpoint


@pytest.fixture(scope="module")
def run(data_dir):
    """(experiment, training set, evaluation set, the metadata of a checkpoint)."""
    settings = experiment(data_dir)
    train_set, eval_set = open_data(settings.data)
    metadata = {
        "config": settings.to_dict(),
        "heads": train_set.heads,
        "class_names": {head: list(names) for head, names in train_set.class_names.items()},
        "data": {"examples": train_set.num_videos, "index": train_set.digests(), "held_out": eval_set.digests()},
    }
    return settings, train_set, eval_set, metadata


def rebuilt(train_set, eval_set, change):
    """The data after their index was changed."""
    (split,) = train_set.splits
    return TrainingSet.from_split(change(split)), change(eval_set)


def test_renumbered_classes_keep_the_ids_of_the_checkpoint(run):
    settings, train_set, eval_set, metadata = run
    names = {head: [n.upper() for n in of_head[::-1]] for head, of_head in train_set.class_names.items()}
    turned = rebuilt(train_set, eval_set, lambda split: relabel(split, names))
    assert (turned[0].splits[0].labels["verb"] != train_set.splits[0].labels["verb"]).any()
    for followed, before in zip(
        follow_checkpoint(*turned, settings.data, metadata), (train_set, eval_set), strict=True
    ):
        assert followed.class_names == metadata["class_names"]
        first, second = (TrainingSet.from_split(each).splits[0] for each in (followed, before))
        for head in before.heads:
            np.testing.assert_array_equal(first.labels[head], second.labels[head])


def test_other_classes_are_refused(run):
    settings, train_set, eval_set, metadata = run
    names = {**metadata["class_names"], "noun": ["juggle", *metadata["class_names"]["noun"][1:]]}
    renamed = rebuilt(train_set, eval_set, lambda split: dataclasses.replace(split, class_names=names))
    with pytest.raises(ConfigError, match=r"'noun' has other classes: 10 .*1 \('juggle'\) only in the data") as error:
        follow_checkpoint(*renamed, settings.data, metadata)
    assert "--config.data.allow_changed=True" in str(error.value)
    allowed = dataclasses.replace(settings.data, allow_changed=True)
    assert follow_checkpoint(*renamed, allowed, metadata)[0].class_names["noun"][0] == "juggle"
    fewer = {**metadata, "class_names": {**metadata["class_names"], "noun": names["noun"][:9]}}
    with pytest.raises(ConfigError, match="only in the data"):
        follow_checkpoint(train_set, eval_set, allowed, {**fewer, "heads": {**metadata["heads"], "noun": 9}})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda split: {"video_id": split.video_id[::-1]}, "the names or the order of the videos changed"),
        (lambda split: {"labels": split.labels | {"verb": split.labels["verb"][::-1]}}, "the labels changed"),
        (lambda split: {"chunk_checksum": split.chunk_checksum ^ 1}, "the stored frames changed"),
    ],
)
def test_other_videos_under_the_same_name_are_refused_unless_allowed(run, change, difference, caplog):
    settings, train_set, eval_set, metadata = run
    follow_checkpoint(train_set, eval_set, settings.data, metadata)
    assert "compared" not in caplog.text
    held_out = dataclasses.replace(eval_set, **change(eval_set))
    follow_checkpoint(train_set, held_out, dataclasses.replace(settings.data, eval_split="train"), metadata)
    assert "compared" not in caplog.text
    follow_checkpoint(train_set, held_out, settings.data, metadata)
    assert "The videos or labels of split validation are not those of the run's checkpoint" in caplog.text
    changed = rebuilt(train_set, eval_set, lambda split: dataclasses.replace(split, **change(split)))
    with pytest.raises(ConfigError, match=f"moving_digits are not those of the run's checkpoint: {difference}; put"):
        follow_checkpoint(*changed, settings.data, metadata)
    follow_checkpoint(*changed, dataclasses.replace(settings.data, allow_changed=True), metadata)
    # Checkpoints of older versions have no hashes; a config that asks for other data is only warned of.
    follow_checkpoint(*changed, settings.data, {**metadata, "data": {"examples": train_set.num_videos}})
    asked = dataclasses.replace(settings.data, subset=dataclasses.replace(settings.data.subset, fraction=0.5))
    follow_checkpoint(*changed, asked, metadata)


def test_the_number_of_videos_is_compared_in_old_checkpoints_too(run):
    settings, train_set, eval_set, metadata = run
    with pytest.raises(ConfigError, match=r"the number of videos \(19 -> 20\) changed"):
        follow_checkpoint(train_set, eval_set, settings.data, {**metadata, "data": {"examples": 19}})
    assert follow_checkpoint(train_set, eval_set, settings.data, {**metadata, "data": {}})[0] is train_set


def test_another_batch_size_is_refused(run):
    settings, _, _, metadata = run
    size, metadata = settings.batch_size, metadata | {"step": 3}
    larger = dataclasses.replace(settings, batch_size=2 * size)
    with pytest.raises(ConfigError, match=rf"batch_size={2 * size}, .* with {size}: {3 * size} clips are left out"):
        check_resumed_batch_size(larger, metadata)
    with pytest.raises(ConfigError, match=rf"repeated. Use {size}, or .* --config.data.allow_changed=True"):
        check_resumed_batch_size(dataclasses.replace(settings, batch_size=size // 2), metadata)
    check_resumed_batch_size(settings, metadata)
    check_resumed_batch_size(
        dataclasses.replace(larger, data=dataclasses.replace(settings.data, allow_changed=True)), metadata
    )
