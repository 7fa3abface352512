"""Builds with Beam: the bytes of a local build, and the errors."""

import builtins
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.videos import numbered_video
from vivit_jax.data import annotations, build, catalog
from vivit_jax.data.build import beam, shards
from vivit_jax.data.video import encode


def official_folder(folder: Path) -> tuple[Path, Path]:
    """Kinetics with six videos in three shards, one of them not a video."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for number in range(6):
        name = f"v{number}"
        numbered_video(folder / "videos" / f"{name}.mp4", 18 + number, height=32, width=32)
        lines.append(f"label {number % 2},{name},0,{1 + number % 2},train")
    (folder / "videos" / "v3.mp4").write_text("not a video")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.csv").write_text("\n".join(lines) + "\n")
    return folder / "videos", folder / "annotations"


def small_shards(monkeypatch):
    dataset = dataclasses.replace(catalog.get("kinetics400"), rows_per_shard=2)
    monkeypatch.setattr(catalog, "get", lambda name: dataset)


def same_files(first: Path, second: Path) -> None:
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert sum("tfrecord" in name for name in names) == 3
    for name in names:
        if name.endswith(".npz"):  # contains the time of writing
            one, other = np.load(first / name), np.load(second / name)
            assert one.files == other.files
            assert all((one[key] == other[key]).all() for key in one.files)
        else:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("runner", ["FnApiRunner", pytest.param("direct", marks=pytest.mark.slow)])
def test_beam_equals_local_build(tmp_path, monkeypatch, runner):
    pytest.importorskip("apache_beam")
    small_shards(monkeypatch)
    videos, folder = official_folder(tmp_path)
    local = build.build(
        "kinetics400", videos, folder, tmp_path / "local", build.BuildOptions(num_workers=0, progress=False)
    )
    workers = {"direct": 2}.get(runner)
    by_beam = build.build(
        "kinetics400",
        videos,
        folder,
        tmp_path / "beam",
        build.BuildOptions(num_workers=workers, progress=False, runner=runner),
    )
    same_files(local, by_beam)


def test_beam_worker_equals_local_build(tmp_path, monkeypatch):
    """Without Beam: a worker writes shards in any order, one of them twice."""
    small_shards(monkeypatch)
    videos, folder = official_folder(tmp_path)
    local = build.build(
        "kinetics400", videos, folder, tmp_path / "local", build.BuildOptions(num_workers=0, progress=False)
    )
    written = []

    def write_elsewhere(todo, staging, form, class_names, flags, on_rows, multi_label):
        assert flags == ["--runner=Elsewhere", "--region=x"]
        for shard in [todo[2], todo[0], todo[2], todo[1]]:
            # A runner hands over copies.
            written.append(beam.write_shard(dataclasses.replace(shard), str(staging), form, class_names, multi_label))
        for shard in todo:
            shards.restore(shard, staging)

    monkeypatch.setattr(beam, "load", lambda: None)
    monkeypatch.setattr(beam, "write_shards", write_elsewhere)
    by_beam = build.build(
        "kinetics400",
        videos,
        folder,
        tmp_path / "there",
        build.BuildOptions(progress=False, runner="Elsewhere", runner_flags=["--region=x"]),
    )
    assert [Path(path).name for path in written] == [f"train-0000{i}.tfrecord" for i in (2, 0, 2, 1)]
    same_files(local, by_beam)


def test_beam_errors(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"--workers is for the runners local and direct; SparkRunner has its own flags"
    ):
        beam.runner_flags("SparkRunner", 4)
    with pytest.raises(ValueError, match="workers is 0; the direct runner needs at least 1"):
        beam.runner_flags("direct", 0)
    assert "--direct_num_workers=3" in beam.runner_flags("direct", 3)
    with pytest.raises(ValueError, match=r"--region=x: flags after -- are for Beam"):
        build.build("kinetics400", tmp_path, tmp_path, tmp_path, build.BuildOptions(runner_flags=["--region=x"]))
    original = builtins.__import__

    def without_beam(name, *arguments, **keywords):
        if name.startswith("apache_beam"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_beam)
    monkeypatch.delitem(sys.modules, "apache_beam", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'vivit_jax\[beam\]'"):
        beam.write_shards([], tmp_path, encode.EncodeOptions(32), {}, ["--runner=DirectRunner"])


def test_missing_shards(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    row = annotations.Row("a", 0.0, 1.0, {"label": 0}, "train")
    shard = shards.Shard("train", 0, [shards.File(None, 0, [row], [(None, None)])])
    monkeypatch.setattr(beam, "write_shard", lambda *arguments: "elsewhere")
    with pytest.raises(RuntimeError, match=r"1 of 1 shards are missing, first .*train-00000.tfrecord"):
        beam.write_shards([shard], tmp_path, encode.EncodeOptions(32), {"label": ["x"]}, ["--runner=FnApiRunner"])
