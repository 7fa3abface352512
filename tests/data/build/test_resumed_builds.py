"""Builds that were interrupted, divided or made twice at the same time."""

import dataclasses
import unicodedata

import pytest

from tests.data.build.test_builder import kinetics_folder
from tests.helpers.videos import numbered_video
from vivit_jax.data import build, catalog, paths, verify, workers
from vivit_jax.data.build.__main__ import main as build_main
from vivit_jax.data.build.records import RecordsBuild
from vivit_jax.data.records.split import open_split
from vivit_jax.data.video import encode
from vivit_jax.utils import storage


def test_interrupted_build_continues(tmp_path, monkeypatch):
    videos, folder = kinetics_folder(tmp_path)
    (videos / "b.mp4").write_text("not a video")
    numbered_video(videos / "c.mp4", 33, height=62, width=90)  # rows of 270 bytes, which FFmpeg pads
    dataset = dataclasses.replace(catalog.get("kinetics400"), rows_per_shard=2)
    options = build.BuildOptions(dataset.short_side, num_workers=0, progress=False)
    whole = RecordsBuild(dataset, videos, folder, tmp_path / "whole", options).run()
    encoded = []
    original = encode.encode_file

    def interrupted_at_fourth(task):
        encoded.append(task.path.stem)
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return original(task)

    monkeypatch.setattr(encode, "encode_file", interrupted_at_fourth)
    arguments = (dataset, videos, folder, tmp_path / "out", options)
    with pytest.raises(KeyboardInterrupt):
        RecordsBuild(*arguments).run()
    assert not build.records_folder("kinetics400", tmp_path / "out").exists()
    encoded.extend("-")
    records = RecordsBuild(*arguments).run()
    assert encoded == ["a", "b", "c", "d", "-", "c", "d"], "the first shard is not encoded again"
    assert (records / "rejects.csv").read_text() == (whole / "rejects.csv").read_text()
    for name in sorted(path.name for path in whole.iterdir()):
        if "tfrecord" in name or name.startswith(("summary", "class")):
            assert (records / name).read_bytes() == (whole / name).read_bytes(), name
    assert [path.name for path in records.parent.iterdir()] == [paths.VERSION], "nothing half-done is left"


def test_only_the_shard_of_a_video_that_came_late_is_built_again(tmp_path, monkeypatch, caplog):
    videos, folder = kinetics_folder(tmp_path)
    dataset = dataclasses.replace(catalog.get("kinetics400"), rows_per_shard=1)
    options = build.BuildOptions(dataset.short_side, num_workers=0, progress=False)
    (videos / "b.mp4").rename(tmp_path / "b.mp4")
    arguments = (dataset, videos, folder, tmp_path / "out")
    for quality in (70, options.quality):  # the first of them is never ended
        unfinished = RecordsBuild(*arguments, dataclasses.replace(options, quality=quality))
        monkeypatch.setattr(unfinished, "_publish", lambda: {}[0])
        with pytest.raises(KeyError):
            unfinished.run()
    (tmp_path / "b.mp4").rename(videos / "b.mp4")
    encoded, original = [], encode.encode_file
    monkeypatch.setattr(encode, "encode_file", lambda task: encoded.append(task.path.stem) or original(task))
    records = RecordsBuild(*arguments, options).run()
    assert encoded == ["b"]
    assert open_split(records, "train").video_id.tolist() == ["a", "b", "c", "d"]
    (left,) = [path for path in records.parent.iterdir() if path != records]
    assert f"{left}: unfinished, of a build with other options" in caplog.text


def test_records_that_another_build_finished_meanwhile_are_used(tmp_path, monkeypatch):
    videos, folder = kinetics_folder(tmp_path)
    arguments = ("kinetics400", videos, folder, tmp_path / "out")
    locked = storage.locked

    def ended_meanwhile(*rest):
        monkeypatch.setattr(storage, "locked", locked)
        build.build(*arguments, build.BuildOptions(num_workers=0, progress=False))
        monkeypatch.setattr(workers, "ordered_map", None)
        return locked(*rest)

    monkeypatch.setattr(storage, "locked", ended_meanwhile)
    records = build.build(*arguments, build.BuildOptions(num_workers=0, progress=False))
    assert records == build.records_folder("kinetics400", tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(storage, "locked", ended_meanwhile)
    arguments = (*arguments[:3], tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds records with quality 85 \(50 requested\)"):
        build.build(*arguments, build.BuildOptions(num_workers=0, progress=False, quality=50))


def test_accents_are_found_in_either_form(tmp_path):
    """Archives of macOS have decomposed names."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, label in (("train", composed), ("val", decomposed)):
        numbered_video(tmp_path / "folders" / split / label / f"{split}.mp4", 16)
    records = build.build("f", tmp_path / "folders", None, tmp_path, build.BuildOptions(kind="folder", num_workers=0))
    assert open_split(records, "validation").class_names == {"label": [composed]}
    numbered_video(tmp_path / "files" / f"{decomposed}.mp4", 16)
    (tmp_path / "list.csv").write_text(f"path,label,split\n{composed}.mp4,a,train\n{composed}.mp4,a,val\n")
    files = tmp_path / "files", tmp_path / "list.csv"
    records = build.build("c", *files, tmp_path, build.BuildOptions(kind="csv", num_workers=0))
    assert len(open_split(records, "train").video_id) == 1


def test_parts_of_several_machines_equal_one_build(tmp_path, monkeypatch):
    """Each of three machines writes every third shard, and the last build only puts them together."""
    videos, folder = kinetics_folder(tmp_path, ["absent"])
    dataset = dataclasses.replace(catalog.get("kinetics400"), rows_per_shard=1)
    monkeypatch.setattr(catalog, "get", lambda name: dataset)
    flags = ["--dataset=kinetics400", f"--videos={videos}", f"--annotations={folder}", "--workers=0"]
    build_main([*flags, f"--out={tmp_path / 'one'}"])
    several = tmp_path / "several"
    for part in ("3/3", "1/3", "2/3"):
        build_main([*flags, f"--out={several}", f"--part={part}"])
        assert not build.records_folder("kinetics400", several).exists()
    monkeypatch.setattr(encode, "encode_file", None)
    build_main([*flags, f"--out={several}"])
    (report,) = verify.verify(several / "kinetics400" / "1.0.0", 1, progress=False)
    assert report.problems == [], "also where a shard is empty, as its rows were all rejected"
    one, other = (build.records_folder("kinetics400", out) for out in (tmp_path / "one", several))
    assert sum("tfrecord" in name for name in storage.names(one)) == 5
    assert storage.names(one) == storage.names(other)
    for name in storage.names(one):
        if not name.endswith(".npz"):  # contains the time of writing
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    with pytest.raises(SystemExit):
        build_main([*flags, f"--out={several}", "--part=4/3"])
