"""The embedded data set: splits, balance, motion, files and annotations."""

import csv
import hashlib
import json

import av
import numpy as np
import pytest

from vivit_jax.data import annotations, catalog, moving_digits
from vivit_jax.data.annotations import epic


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "videos").iterdir())}


def test_splits_share_no_scan_and_are_balanced():
    clips = moving_digits.plan()
    scans = {split: {c.scan for c in clips if c.split == split} for split in ("train", "validation")}
    assert not scans["train"] & scans["validation"]
    for split, count in (("train", 30), ("validation", 6)):
        pairs = [(c.verb, c.noun) for c in clips if c.split == split]
        assert {pairs.count(pair) for pair in set(pairs)} == {count}
        assert len(set(pairs)) == 80
    assert len({c.video_id for c in clips}) == 2880


def test_participants_differ_between_splits(tiny):
    """The participant of an annotation is the scan."""
    folder = tiny / "moving_digits" / "annotations"
    train, validation = (read_csv(folder / f"EPIC_100_{split}.csv") for split in ("train", "validation"))
    assert (len(train), len(validation)) == (48, 16)
    assert tuple(train[0]) == epic.COLUMNS
    assert not {row["participant_id"] for row in train} & {row["participant_id"] for row in validation}


def test_video_files(tiny):
    videos = tiny / "moving_digits" / "videos"
    rows = read_csv(tiny / "moving_digits" / "annotations" / "EPIC_100_train.csv")
    seen = set()
    for row in rows[:12]:
        with av.open(str(videos / f"{row['video_id']}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 64)
            assert 12 <= float(stream.average_rate) <= 30
            assert 26 <= stream.frames <= 38
            assert stream.frames == int(row["stop_frame"])
            seen.add(stream.frames)
    assert len(seen) > 3, "lengths vary"


@pytest.mark.parametrize("verb", range(0, 8, 2))
def test_verb_pairs_are_time_reversals(verb):
    for seed in range(20):
        forward = moving_digits.trajectory(verb, 30, np.random.default_rng(seed))
        backward = moving_digits.trajectory(verb + 1, 30, np.random.default_rng(seed))
        np.testing.assert_array_equal(forward, backward[::-1])


def test_verbs_describe_the_motion():
    def positions(name, seed):
        return moving_digits.trajectory(moving_digits.VERBS.index(name), 32, np.random.default_rng(seed)).T

    for seed in range(20):
        assert (np.diff(positions("move-left", seed)[0]) < 0).all()
        assert (np.diff(positions("move-right", seed)[0]) > 0).all()
        assert (np.diff(positions("move-up", seed)[1]) < 0).all(), "y points down"
        assert (np.diff(positions("move-down", seed)[1]) > 0).all()
        assert (np.diff(positions("grow", seed)[2]) > 0).all()
        x, y, _ = positions("circle-clockwise", seed)
        turn = np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(y)[:-1] * np.diff(x)[1:]
        assert (turn > 0).all(), "clockwise where y points down"
        for name in moving_digits.VERBS:
            assert positions(name, seed)[:2].min() > 8
            assert positions(name, seed)[:2].max() < 56


def test_bytes_depend_on_the_seed_alone(tmp_path):
    one = moving_digits.generate(tmp_path / "one", 8, 4, seed=3, num_workers=0, progress=False)
    two = moving_digits.generate(tmp_path / "two", 8, 4, seed=3, num_workers=2, progress=False)
    assert digests(one) == digests(two)
    assert len(digests(one)) == 12
    # An interrupted run: a video is missing, and the manifest says so.
    kept, lost = sorted((two / "videos").iterdir())[:2]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    state = json.loads((two / moving_digits.MANIFEST).read_text())
    (two / moving_digits.MANIFEST).write_text(json.dumps({**state, "complete": False}))
    moving_digits.generate(two, 8, 4, seed=3, num_workers=0, progress=False)
    assert digests(one) == digests(two)
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"'seed': 3.*requested is .*'seed': 4"):
        moving_digits.generate(two, 8, 4, seed=4, progress=False)
    with pytest.raises(ValueError, match="train=0"):
        moving_digits.plan(train=0)


def test_both_formats_have_the_same_files_and_verbs(tiny):
    folder = tiny / "moving_digits"
    dataset = catalog.get("moving_digits")
    video_files = annotations.VideoFiles(dataset, folder / "videos")
    in_epic = annotations.read(dataset, folder / "annotations")
    in_kinetics = annotations.read(catalog.get("kinetics400"), folder / "annotations")
    assert in_epic.class_names["verb"] == list(moving_digits.VERBS)
    assert in_kinetics.class_names["label"] == sorted(moving_digits.VERBS)
    for split in ("train", "validation"):
        for first, second in zip(in_epic.rows[split], in_kinetics.rows[split], strict=True):
            assert video_files.find(first)[0] == video_files.find(second)[0]
            verb = in_epic.class_names["verb"][first.labels["verb"]]
            assert verb == in_kinetics.class_names["label"][second.labels["label"]]
