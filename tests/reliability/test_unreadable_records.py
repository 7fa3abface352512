"""A storage that fails while training is waited for, then ends the run; broken records are masked up to a limit."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from absl import logging

from tests.data.conftest import tiny, tiny_records  # noqa: F401 (fixtures)
from tests.helpers.batches import PLAIN, VARIED, assert_same, take
from vivit_jax.data import pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records import reader
from vivit_jax.data.records.reader import DataError
from vivit_jax.data.records.split import open_split
from vivit_jax.evaluation.results import Result


@pytest.fixture
def split(tiny_records, tmp_path):  # noqa: F811
    return open_split(shutil.copytree(tiny_records, tmp_path / "records"), "train")


@pytest.fixture
def pauses(monkeypatch):
    """Replaces the pauses by calls of the functions in the list; returns it."""
    calls = []
    monkeypatch.setattr(reader.time, "sleep", lambda seconds: calls.pop(0)())
    return calls


def stream(split, spec=PLAIN, **options):
    return pipeline.train_batches(split, spec, 12, seed=0, options=PipelineOptions(**options))


def break_records(split, *videos):
    with open(split.shard_paths[0], "r+b") as file:
        for chunk in split.first_chunk[list(videos)]:
            file.seek(int(split.chunk_offset[chunk]) + 200)
            file.write(bytes(16))


def test_clips_of_an_outage_are_read_when_the_storage_answers(split, pauses):
    expected, gone = take(stream(split, VARIED), 5), split.folder.with_name("gone")
    split.folder.rename(gone)
    pauses += [lambda: None, lambda: gone.rename(split.folder)]
    with stream(split, VARIED) as batches:
        got = [next(batches) for _ in range(5)]
    for first, second in zip(expected, got, strict=True):
        assert_same(first, second)
    assert (pauses, batches.corrupt) == ([], 0)


def absent(shard):
    os.remove(shard)


def unmounted(shard):
    shutil.rmtree(os.path.dirname(shard))


def input_output_error(shard):
    os.remove(shard)
    os.symlink("/proc/self/mem", shard)  # whose first byte cannot be read


def folder_in_its_place(shard):
    os.remove(shard)
    os.mkdir(shard)


@pytest.mark.parametrize("damage", [absent, unmounted, input_output_error, folder_in_its_place])
def test_outages_are_told_from_broken_records(split, pauses, damage):
    shard = split.shard_paths[0]
    damage(shard)
    pauses += [lambda: None] * len(reader.PAUSES)
    read = reader.records_from(tf.constant(shard), tf.constant(0, tf.int64)).take(1).get_single_element
    with pytest.raises(DataError, match=rf"^{shard} cannot be read \(.*tried 5 times in 80 s"):
        reader.read_again(read, shard)
    assert not pauses


def test_outage_that_lasts_ends_the_program(split, pauses):
    os.remove(split.shard_paths[0])
    pauses += [lambda: None] * len(reader.PAUSES)
    batches = stream(split)
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        next(batches)
    assert (pauses, batches.corrupt, batches.step) == ([], 0, 0)


def test_broken_records_are_reported_and_limited(split, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "log_every_n_seconds", lambda level, text, n, *args: lines.append(text % args))
    break_records(split, 5, 6)
    with stream(split, max_unreadable=0.05) as batches:
        masks = np.concatenate([next(batches)["mask"] for _ in range(8)])  # two epochs
    assert (masks == 0).sum() == batches.corrupt == len(lines) == 4
    for video in (5, 6):
        record = f"{split.video_id[video]} in {split.shard_paths[0]}, corrupted record at "
        assert sum(f" videos are broken): {record}" in line for line in lines) == 2
    with pytest.raises(DataError, match=r"2 of 48 videos are broken.* data\.max_unreadable=0\.01 allows 1\.") as error:
        take(stream(split), 4)
    assert all(f"{split.video_id[video]} in {split.shard_paths[0]}" in str(error.value) for video in (5, 6))


def test_limit_counts_each_broken_video_once(split):
    limit = reader.Limit(share=0.01, num_videos=300)
    for step in range(20):
        limit.check(step, {step % 3: "a"}, all_lost=False)
    with pytest.raises(DataError, match=r"4 of 300 videos are broken.* allows 3\."):
        limit.check(20, {3: "a"}, all_lost=False)
    # Batches of more than an epoch, with two clips of each video.
    break_records(split, 5)
    spec = dataclasses.replace(PLAIN, clips_per_video=2)
    with pipeline.train_batches(split, spec, 240, seed=0) as batches:
        assert [set(batch["index"][batch["mask"] == 0]) for batch in (next(batches), next(batches))] == [{5}] * 2
        assert batches.corrupt > 4
    with pytest.raises(DataError, match=r"1 of 48 videos .* data\.max_unreadable=0 allows 0\."):
        take(stream(split, max_unreadable=0), 4)


def test_batch_without_a_clip_ends_the_run(split):
    size = os.path.getsize(split.shard_paths[0])
    with open(split.shard_paths[0], "wb") as file:
        file.write(bytes(size))
    with pytest.raises(DataError, match=r"no clip of batch 0 can be read.*\n.*corrupted record at") as error:
        next(stream(split, max_unreadable=1.0))
    assert split.shard_paths[0] in str(error.value)
    # The few rows of one of many processes may be broken by chance.
    options = PipelineOptions(max_unreadable=1.0)
    (batch,) = take(pipeline.train_batches(split, PLAIN, 12, seed=0, rows=(0, 2), options=options), 1)
    assert batch["mask"].tolist() == [0, 0]


def test_shard_cut_short_loses_its_last_videos(split):
    last = split.num_videos - 1
    os.truncate(split.shard_paths[0], int(split.chunk_offset[split.first_chunk[last - 1]]) + 20)
    with pipeline.eval_batches(split, PLAIN, 48) as batches:
        (batch,) = batches
    assert np.flatnonzero(batch["mask"] == 0).tolist() == [last - 1, last]


def test_evaluation_of_a_part_says_so():
    result = Result({"top1": 0.5}, {}, counted=98, unreadable=2, views=(1, 1))
    assert "98 videos" in result.summary()
    assert "2 unreadable" in result.summary()
    assert result.problem(0.02) is None
    assert "2 of 100 videos could not be read" in result.problem(0.01)
