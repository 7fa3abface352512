"""Flips that swap labels: mirror classes by name, and the motions that flipped clips show."""

import dataclasses

import numpy as np
import pytest

from vivit_jax.data import moving_digits, pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.records.split import open_split
from vivit_jax.data.selection import mirror, sampling, training_set

# Classes of Something-Something v2 with "left" or "right" in them, and some that only look like it.
SOMETHING = [
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Putting something upright on the table",
    "Pushing something so that it falls off the table",
]
SPEC = sampling.ClipSpec(16, (48, 48), random_crop=True, scale_jitter=(0.9, 1.33), flip_probability=0.5)


def test_mirror_class_from_names():
    assert mirror.classes(SOMETHING).tolist() == [1, 0, 3, 2, 4, 5]
    assert mirror.classes(["spin Clockwise", "spin anti-clockwise", "spin"]).tolist() == [1, 0, 2]
    assert mirror.classes(["turn_counter_clockwise", "turn_clockwise", "leftover", "rightly"]).tolist() == [1, 0, 2, 3]
    assert mirror.classes(["step leftwards", "step rightward"]).tolist() == [-1, -1], "not the same but for the word"
    assert mirror.classes(["go left", "go right", "go_right"]).tolist() == [-1, 0, 0], "two candidates are none"


@pytest.fixture(scope="module")
def training(tiny_records):
    return training_set.training_set({"moving_digits": open_split(tiny_records, "train")}, "moving_digits")


def first_batch(training, **changes):
    spec = dataclasses.replace(SPEC, **changes)
    with pipeline.train_batches(training, spec, 48, 3, options=PipelineOptions(threads=1)) as stream:
        batch = next(stream)
        return (
            {"log": stream.description}
            | {key: np.array(batch[key]) for key in ("video", "index")}
            | {"label": batch["label"]}
        )


def test_swap_changes_labels_of_flipped_clips_only(training):
    straight, keep = first_batch(training, flip_probability=0.0), first_batch(training)
    swap = first_batch(training, flip_labels="swap")
    np.testing.assert_array_equal(swap["video"], keep["video"], err_msg="the same frames, crops and flips")
    flipped = np.array([not np.array_equal(a, b) for a, b in zip(straight["video"], swap["video"], strict=True)])
    assert 10 < flipped.sum() < 38
    np.testing.assert_array_equal(swap["video"][flipped], straight["video"][flipped][..., ::-1, :])
    np.testing.assert_array_equal(keep["label"]["verb"], straight["label"]["verb"])
    np.testing.assert_array_equal(swap["label"]["noun"], straight["label"]["noun"])
    verb = straight["label"]["verb"]
    image = np.array([1, 0, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(swap["label"]["verb"], np.where(flipped, image[verb], verb))
    assert "flips swap the labels of 2 classes" in swap["log"]
    assert "flips keep the labels of 2 classes that name a direction (move-left, move-right" in keep["log"]
    assert "flips" not in straight["log"]


def test_flipped_clips_show_motion_of_their_label(training):
    """The brightest pixels of the frames are the digit: it moves to the side that the label says, flipped or not."""
    batch = first_batch(training, flip_labels="swap", scale_jitter=None)
    checked = 0
    for clip, verb in zip(batch["video"], batch["label"]["verb"], strict=True):
        if verb > 1:
            continue
        light = clip.astype(np.float64).sum(-1)
        # What never moves is subtracted; the rest is the digit, roughly.
        ink = np.clip(light - np.median(light, axis=0), 0, None) ** 2
        x = (ink.sum(1) * np.arange(light.shape[2])).sum(1) / np.maximum(ink.sum((1, 2)), 1)
        slope = np.polyfit(np.arange(len(x)), x, 1)[0]
        assert (slope > 0) == (moving_digits.VERBS[verb] == "move-right")
        checked += 1
    assert checked >= 8


def test_class_without_mirror_image_is_not_flipped(training):
    """One that has lost its counterpart: its clips stay as they are, the others are flipped as before."""
    names = list(training.class_names["verb"])
    names[1] = "move-sideways"  # what was move-right
    split = dataclasses.replace(training.splits[0], class_names={**training.class_names, "verb": names})
    lonely = dataclasses.replace(training, splits=(split,))
    swap, keep = first_batch(lonely, flip_labels="swap"), first_batch(lonely)
    straight = first_batch(lonely, flip_probability=0.0)
    verb = straight["label"]["verb"]
    np.testing.assert_array_equal(swap["video"][verb == 0], straight["video"][verb == 0])
    np.testing.assert_array_equal(swap["video"][verb != 0], keep["video"][verb != 0])
    assert (swap["label"]["verb"][verb == 0] == 0).all()
    count = int((split.labels["verb"] == 0).sum())
    assert f"{count} videos are never flipped, as there is no class for the mirror image of move-left" in swap["log"]


def test_flips_swap_multi_label_targets(training):
    ids = np.array([[0, 2, -1], [2, -1, -1], [1, 3, -1], [-1, -1, -1]], np.int32)
    names = {"label": ["go left", "go right", "stay", "turn left"]}
    assert mirror.may_flip({"label": ids}, {"label": np.array([1, 0, 2, mirror.NONE])}).tolist() == [
        True,
        True,
        False,
        True,
    ]
    labels = {"label": ids[np.arange(48) % 4]}
    split = dataclasses.replace(training.splits[0], labels=labels, class_names=names)
    batch = first_batch(split, flip_probability=1.0, flip_labels="swap")
    expected = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["label"]["label"], expected[batch["index"] % 4])


def test_unknown_flip_labels_is_an_error():
    with pytest.raises(ValueError, match="flip_labels='mirror' is not known; choose one of keep, swap"):
        dataclasses.replace(SPEC, flip_labels="mirror")
