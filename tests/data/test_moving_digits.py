"""The embedded data set: splits, balance, motion, files and annotations."""

import csv
import hashlib
import json

import av
import numpy as np
import pytest

from vivit_jax.data import annotations, catalog, moving_digits, workers
from vivit_jax.data.annotations import published
from vivit_jax.data.selection import mirror


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
    assert tuple(train[0]) == published.EPIC_COLUMNS
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
            assert 31 <= stream.frames <= 34
            assert stream.frames == int(row["stop_frame"])
            seen.add(stream.frames)
    assert len(seen) > 2, "lengths vary"


@pytest.mark.parametrize("verb", range(0, 8, 2))
def test_verb_pairs_are_time_reversals(verb):
    for seed in range(20):
        forward = moving_digits.trajectory(verb, 30, np.random.default_rng(seed))
        backward = moving_digits.trajectory(verb + 1, 30, np.random.default_rng(seed))
        np.testing.assert_array_equal(forward, backward[::-1])


@pytest.mark.parametrize("verb", range(8))
def test_verbs_describe_the_motion(verb):
    """Also mirrored: the path then has the direction of the verb that is its mirror image."""
    image = mirror.classes(moving_digits.VERBS)[verb]
    for seed in range(40):
        path = moving_digits.trajectory(verb, 31 + seed % 4, np.random.default_rng(seed))
        assert motion(path) == moving_digits.VERBS[verb]
        assert motion(path * [-1, 1, 1] + [moving_digits.SIZE - 1, 0, 0]) == moving_digits.VERBS[image]
        assert path[:, :2].min() > 8
        assert path[:, :2].max() < 56


def motion(path):
    """The verb of a path [frames, 3] of x, y (downwards) and size, from its geometry."""
    x, y, size = path.T
    if (np.diff(size) != 0).all():
        return "grow" if size[-1] > size[0] else "shrink"
    if (np.diff(x) != 0).all():
        return "move-right" if x[-1] > x[0] else "move-left"
    a, b = (moves(x), moves(y)) if np.ptp(size) == 0 else (moves(x) | moves(y), moves(size))
    names = ("shake", "nod") if np.ptp(size) == 0 else ("loop", "swell")
    return "-then-".join(names if a.nonzero()[0].mean() < b.nonzero()[0].mean() else names[::-1])


def moves(values):
    return np.abs(values - values[0]) > 1e-9


@pytest.mark.parametrize("verb", range(4, 8))
def test_a_clip_shows_both_parts_and_a_tubelet_one(verb):
    """Clips are 32 frames of a video, tubelets span 8 of them."""
    for seed in range(200):
        frames = 31 + seed % 4
        path = moving_digits.trajectory(verb, frames, np.random.default_rng(seed))
        moving = np.flatnonzero(moves(path).any(axis=1))
        gap = np.diff(moving).argmax()
        assert 7 < moving[gap + 1] - moving[gap] < 16, "rest between the parts, of random length"
        assert moving[0] >= frames - 32
        assert moving[-1] < 32
        # Played backwards a part is such a part again: its direction does not tell that it is the second.
        for part in (path[moving[0] - 1 : moving[gap] + 2], path[moving[gap + 1] - 1 : moving[-1] + 2]):
            np.testing.assert_allclose(part[0], part[-1], atol=1e-9, err_msg="it ends where it began")
    forward = {round(moving_digits.trajectory(verb, 32, np.random.default_rng(s))[9:14].sum()) for s in range(50)}
    assert len(forward) > 30, "the parts vary"


@pytest.mark.parametrize("verb", range(0, 8, 2))
def test_average_of_tubelets_does_not_tell_the_order_of_parts(verb):
    """Ridge regression on random Fourier features of the path within each tubelet of 4 frames, stride 2."""
    rng, clips, labels = np.random.default_rng(verb), [], np.repeat([-1, 1], 700)
    for label in labels:
        path = moving_digits.trajectory(verb + (label > 0), int(rng.integers(31, 35)), rng)
        start = rng.integers(max(len(path) - 32, 0) + 1)
        clips.append(path[(start + 2 * np.arange(16)) % len(path)].reshape(4, 4, 3))
    clips = np.array(clips)
    centre = clips.mean(axis=2, keepdims=True)
    seen = np.concatenate([(clips - centre).reshape(-1, 4, 12) / 4, (centre[:, :, 0] - [31.5, 31.5, 28]) / 8], axis=2)
    tubelets = np.cos(seen @ rng.normal(size=(15, 400)) + rng.uniform(0, 2 * np.pi, 400))
    order = rng.permutation(len(labels))
    train, held_out = order[:1000], order[1000:]

    def accuracy(features):
        a = features[train]
        weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ labels[train])
        return np.mean(np.sign(features[held_out] @ weights) == labels[held_out])

    assert accuracy(tubelets.reshape(len(labels), -1)) > 0.95, "in order, they tell"
    if verb < 4:
        assert accuracy(tubelets.mean(axis=1)) > 0.95, "a simple motion shows within a tubelet"
    else:
        assert abs(accuracy(tubelets.mean(axis=1)) - 0.5) < 0.1


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


def test_annotations_are_read(tiny):
    result = annotations.read(catalog.get("moving_digits"), tiny / "moving_digits" / "annotations")
    assert result.class_names == {"verb": list(moving_digits.VERBS), "noun": list(moving_digits.NOUNS)}
    clips = {clip.video_id: {"verb": clip.verb, "noun": clip.noun} for clip in moving_digits.plan(48, 16)}
    assert {row.video: dict(row.labels) for rows in result.rows.values() for row in rows} == clips


def test_a_full_disk_ends_in_one_message(tmp_path, monkeypatch):
    full = workers.WorkerError("a task failed in a worker process:\nOSError: [Errno 28] No space left on device")
    monkeypatch.setattr(workers, "ordered_map", lambda *args, **options: iter([full]))
    with pytest.raises(SystemExit, match=r"error: .*\n.*No space left on device"):
        moving_digits.main([f"--out={tmp_path}"])
