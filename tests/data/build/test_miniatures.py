"""Every data set, from its official files to records, a training batch and evaluation views."""

import csv
import json

import numpy as np
import pytest

from tests.helpers import miniature
from tests.helpers.videos import read_number
from vivit_jax.data import build, catalog, pipeline
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.records.split import open_split

SPEC = pipeline.ClipSpec(8, (64, 64))


@pytest.mark.parametrize("name", miniature.NAMES)
def test_from_official_files_to_batches(tmp_path, name):
    small = miniature.write(name, tmp_path / "source")
    dataset, kind = small.dataset, name if name in catalog.CUSTOM_KINDS else None
    records = build.build(
        dataset.name,
        small.videos,
        small.annotations,
        tmp_path,
        build.BuildOptions(num_workers=0, progress=False, kind=kind),
    )
    assert build.prepare(dataset.name, tmp_path) == records == build.records_folder(dataset.name, tmp_path)
    heads = {head: len(names) for head, names in small.class_names.items()}
    assert catalog.of_records(dataset.name, records).heads == heads

    with open(records / "rejects.csv", newline="", encoding="utf-8") as file:
        rejects = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    assert rejects.keys() == small.rejects.keys()
    for video, reason in small.rejects.items():
        assert reason in rejects[video]

    summary = json.loads((records / "summary.json").read_text(encoding="utf-8"))
    assert summary["splits"].keys() == small.expected.keys()
    for part, unordered in small.expected.items():
        split = open_split(records, part)
        # In the order of the annotations, except that rows of one file stay together.
        order = {video: i for i, (video, *_) in reversed([*enumerate(unordered)])}
        expected = sorted(unordered, key=lambda entry: order[entry[0]])
        assert split.heads == heads
        assert split.class_names == {head: list(names) for head, names in small.class_names.items()}
        assert split.video_id.tolist() == [video for video, *_ in expected]
        assert split.num_frames.tolist() == [len(numbers) for *_, numbers in expected]
        for head in heads:
            assert split.labels[head].tolist() == [labels[head] for _, labels, _ in expected]
        assert summary["splits"][part]["videos"] == len(expected)
        assert summary["splits"][part]["published"] == dataset.splits.get(part)
        check_views(split, expected)
    check_training(open_split(records, "train"), small.expected["train"])


def check_views(split, expected):
    """Checks two clips of each video: its first and last frames."""
    with pipeline.eval_batches(
        split, SPEC, len(expected), temporal_views=2, options=PipelineOptions(threads=1)
    ) as batches:
        (batch,) = list(batches)
    assert batch["mask"].all()
    numbers = np.vectorize(read_number, signature="(h,w,c)->()")(batch["video"])
    for views, (_, _, frames) in zip(numbers, expected, strict=True):
        assert views.tolist() == [list(frames[:8]), list(frames[-8:])]


def check_training(split, expected):
    """Checks an epoch: every video once, with its labels and consecutive frames."""
    with pipeline.train_batches(split, SPEC, len(expected), seed=3, options=PipelineOptions(threads=1)) as batches:
        batch = next(batches)
    assert sorted(batch["index"].tolist()) == list(range(len(expected)))
    for head, ids in batch["label"].items():
        assert ids.tolist() == [split.labels[head][i] for i in batch["index"]]
    for clip, video_index in zip(batch["video"], batch["index"], strict=True):
        frames = [*map(read_number, clip)]
        assert frames == list(range(frames[0], frames[0] + 8))
        assert any(
            set(frames) <= set(numbers) for video, _, numbers in expected if video == split.video_id[video_index]
        )
