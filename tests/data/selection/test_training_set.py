"""Mixtures and subsets: selected videos, class ids, and batches of several data sets."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.helpers.batches import PLAIN, take
from vivit_jax.data import pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.records.split import CLASS_NAMES_FILE, open_split
from vivit_jax.data.selection import subset, training_set
from vivit_jax.data.selection.subset import Subset, SubsetError
from vivit_jax.data.selection.training_set import MixtureError
from vivit_jax.utils.class_names import ClassNamesError


@pytest.fixture(scope="module")
def train(tiny_records):
    return open_split(tiny_records, "train")


@pytest.fixture(scope="module")
def other(tiny_records, tmp_path_factory):
    """The validation videos as another data set: verbs in another order and spelling, one unknown to `train`."""
    folder = tmp_path_factory.mktemp("other") / "records"
    shutil.copytree(tiny_records, folder)
    names = json.loads((folder / CLASS_NAMES_FILE).read_text())
    verbs = [name.upper().replace(" ", "_") for name in names["verb"]]
    verbs[-1] = "juggle"
    (folder / CLASS_NAMES_FILE).write_text(json.dumps({"verb": verbs, "noun": names["noun"]}))
    split = open_split(folder, "validation")
    turned = np.roll(np.arange(len(verbs)), 3)
    labels = {"verb": np.argsort(turned).astype(np.int32)[split.labels["verb"]], "noun": split.labels["noun"]}
    return dataclasses.replace(
        split, labels=labels, class_names={"verb": [verbs[i] for i in turned], "noun": names["noun"]}
    )


def verbs_of(split):
    """The verb of each video, by name, without regard to spelling."""
    return [split.class_names["verb"][i].lower().replace("_", " ") for i in split.labels["verb"]]


def test_unknown_classes_error_drop_union(train, other):
    splits = {"digits": train, "other": other}
    juggled = verbs_of(other).count("juggle")
    assert 0 < juggled < 16
    with pytest.raises(MixtureError, match=r"other has 1 classes that head 'verb' of digits does not: juggle"):
        training_set.training_set(splits, "digits")
    dropped = training_set.training_set(splits, "digits", unknown_classes="drop")
    assert dropped.dropped == {"digits": 0, "other": juggled}
    assert f"{juggled} more left out" in str(dropped)
    assert dropped.heads == train.heads
    union = training_set.training_set(splits, "digits", unknown_classes="union")
    assert union.class_names["verb"] == [*train.class_names["verb"], "juggle"]
    np.testing.assert_array_equal(union.splits[0].labels["verb"], train.labels["verb"])
    assert verbs_of(union.splits[1]) == verbs_of(other)
    assert verbs_of(dropped.splits[1]) == [name for name in verbs_of(other) if name != "juggle"]
    assert union.locate(48 + 3) == f"other/{other.video_id[3]}"
    eval_set, _ = training_set.evaluation_split(train, union.class_names)
    assert eval_set.heads == {"verb": 9, "noun": 10}
    with pytest.raises(ClassNamesError, match=r"(?s)'verb' has other classes: 8 .*1 \('juggle'\) only in the data"):
        training_set.evaluation_split(other, train.class_names)
    known = Subset(classes=tuple(name for name in other.class_names["verb"] if name != "juggle"))
    shared, orders = training_set.evaluation_split(other, train.class_names, known)
    assert shared.num_videos == 16 - juggled
    assert shared.class_names["verb"][:7] == [name for name in other.class_names["verb"] if name != "juggle"]
    assert [train.class_names["verb"][i] for i in orders["verb"]] == [
        name.lower().replace("_", " ") for name in shared.class_names["verb"]
    ]
    assert verbs_of(shared) == [name for name in verbs_of(other) if name != "juggle"]
    with pytest.raises(MixtureError, match="only the same heads can be mixed"):
        training_set.training_set(
            {**splits, "kinetics": dataclasses.replace(train, class_names={"label": ["a"]})}, "digits"
        )


@pytest.mark.slow
def test_mixture_batches(train, other):
    mixed = training_set.training_set({"digits": train, "other": other}, "digits", {"digits": 2, "other": 1}, "union")
    spec = dataclasses.replace(PLAIN, stride=4)
    whole = take(pipeline.train_batches(mixed, spec, 12, seed=4), 8)
    indices = np.concatenate([batch["index"] for batch in whole])
    assert [int((block < 48).sum()) for block in indices.reshape(-1, 3)] == [2] * 32
    assert sorted(indices[indices >= 48][:16]) == list(range(48, 64)), "each data set has its own epochs"
    alone = [next(pipeline.eval_batches(split, spec, split.num_videos))["video"][:, 0] for split in (train, other)]
    compared = 0
    for batch in whole:
        for row, index in enumerate(batch["index"]):
            source, number = (0, index) if index < 48 else (1, index - 48)
            split = mixed.splits[source]
            for head in ("verb", "noun"):
                assert batch["label"][head][row] == split.labels[head][number]
            if split.num_frames[number] <= 32:  # only one start fits: the clip is that of the evaluation
                compared += 1
                np.testing.assert_array_equal(batch["video"][row], alone[source][number])
    assert compared > 20
    for options in (
        {"start_step": 5},
        {"start_step": 5, "rows": (3, 7)},
        {"start_step": 5, "options": PipelineOptions(cache=True)},
    ):
        (batch,) = take(pipeline.train_batches(mixed, spec, 12, seed=4, **options), 1)
        low, high = options.get("rows", (0, 12))
        for key in ("video", "index", "mask"):
            np.testing.assert_array_equal(batch[key], whole[5][key][low:high])
    assert mixed.fingerprint(4, PLAIN) != training_set.TrainingSet.from_split(train).fingerprint(4, PLAIN)


def ids(split):
    return set(split.video_id.tolist())


def test_fractions_and_per_class_are_nested(train):
    def chosen(**fields):
        return subset.apply({"d": train}, Subset(**fields))["d"]

    quarter, half = chosen(fraction=0.25), chosen(fraction=0.5)
    assert (quarter.num_videos, half.num_videos) == (12, 24)
    assert ids(quarter) < ids(half)
    assert ids(chosen(fraction=0.5, seed=1)) != ids(half)
    two, three = chosen(per_class=2), chosen(per_class=3)
    assert np.bincount(two.labels["verb"]).tolist() == [2] * 8
    assert ids(two) < ids(three)
    assert chosen(fraction=1e-6).num_videos == 1
    unlabelled = training_set.relabel(train, {})
    assert ids(subset.apply({"d": unlabelled}, Subset(fraction=0.5))["d"]) == ids(half)
    with pytest.raises(SubsetError, match=r"per_class=2: the videos of d have no labels"):
        subset.apply({"d": unlabelled}, Subset(per_class=2))


def test_subset_by_class_and_list(train, tmp_path):
    verbs = train.class_names["verb"][:2]
    selected = subset.apply({"d": train}, Subset(classes=verbs))["d"]
    assert selected.num_videos == np.isin(train.labels["verb"], [0, 1]).sum()
    assert set(selected.labels["verb"]) == {0, 1}, "class ids stay"
    both = subset.apply({"d": train}, Subset(classes=(*verbs, f"noun:{train.class_names['noun'][0]}")))["d"]
    assert both.num_videos == (np.isin(train.labels["verb"], [0, 1]) & (train.labels["noun"] == 0)).sum()
    numbers = dataclasses.replace(train, class_names={**train.class_names, "verb": [*map(str, range(8))]})
    chosen = subset.apply({"d": numbers}, Subset(classes=(0, 1)))["d"]  # as flags parse 0,1
    assert chosen.video_id.tolist() == selected.video_id.tolist()
    twice = {**train.class_names, "verb": [verbs[0], verbs[0], *train.class_names["verb"][2:]]}
    twice = subset.apply({"d": dataclasses.replace(train, class_names=twice)}, Subset(classes=verbs[:1]))["d"]
    assert twice.video_id.tolist() == selected.video_id.tolist(), "all classes of this name"
    names = tmp_path / "list.txt"
    names.write_text("\n".join(["# mine", *train.video_id[[7, 3]], ""]))
    assert (
        subset.apply({"d": train}, Subset(list_file=str(names)))["d"].video_id.tolist()
        == train.video_id[[3, 7]].tolist()
    )
    names.write_text("nobody\n")
    for fields, message in (
        ({"list_file": str(names)}, r"1 of 1 ids are no videos of d, first \['nobody'\]"),
        ({"list_file": str(tmp_path / "absent")}, "cannot be read"),
        ({"classes": (verbs[0][:-1],)}, f"is not a class; did you mean '{verbs[0]}'"),
    ):
        with pytest.raises(SubsetError, match=message):
            subset.apply({"d": train}, Subset(**fields))
    for fields, message in (
        ({"fraction": 0.0}, "must lie in"),
        ({"per_class": 0}, "at least 1"),
        ({"classes": "a"}, "list"),
    ):
        with pytest.raises(ValueError, match=message):
            Subset(**fields)


def test_subset_videos_match_split(train):
    """Pixels and labels of a part, from disk and from memory, are those of the whole."""
    (everything,) = pipeline.eval_batches(train, PLAIN, 48)
    part = subset.apply({"d": train}, Subset(fraction=0.2))["d"]
    indices = [train.video_id.tolist().index(name) for name in part.video_id]
    for options in ({}, {"cache": True}):
        (batch,) = pipeline.eval_batches(part, PLAIN, 10, options=PipelineOptions(**options))
        np.testing.assert_array_equal(batch["video"], everything["video"][indices])
        np.testing.assert_array_equal(batch["label"]["verb"], everything["label"]["verb"][indices])
    assert part.chunk_length.sum() < train.chunk_length.sum() / 3
    whole, smaller = (
        training_set.TrainingSet.from_split(train),
        training_set.training_set({"d": train}, "d", subset=Subset(fraction=0.2)),
    )
    assert "a fraction of 0.2" in str(smaller)
    assert smaller.fingerprint(0, PLAIN) != whole.fingerprint(0, PLAIN)
    other = training_set.training_set({"d": train}, "d", subset=Subset(fraction=0.2, seed=1))
    assert smaller.fingerprint(0, PLAIN) != other.fingerprint(0, PLAIN), "as many videos, but others"
