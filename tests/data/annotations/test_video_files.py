"""Which files and folders are videos, and which of them a path in a list means."""

import pytest

from tests.data.annotations.test_custom import CSV, FOLDER, touch
from vivit_jax.data import annotations, catalog
from vivit_jax.data.annotations.video_files import list_videos

SUFFIXES = (
    "flv wmv 3gp mts m2ts ts gif rm ogv h264 vob MP4 MOV Webm mpg m2v asf f4v rmvb divx dv mxf y4m ivf hevc mjpeg"
)


def found(folder, *paths):
    """The files of paths in a CSV, relative to the folder."""
    (folder.parent / "list.csv").write_text("path,label\n" + "".join(f"{path},x\n" for path in paths))
    rows = [row for of_split in annotations.read(CSV, folder.parent / "list.csv").rows.values() for row in of_split]
    files = annotations.VideoFiles(CSV, folder)
    files.check(rows)
    of_path = {row.file: files.find(row) for row in rows}
    return [of_path[path] and str(of_path[path][0].relative_to(folder)) for path in paths]


def test_suffixes(tmp_path):
    names = [f"a/{i}.{suffix}" for i, suffix in enumerate(SUFFIXES.split())]
    listing = list_videos(touch(tmp_path, *names, "a/x.srt", "a/y.SRT", "a/none", "a/.hidden.mp4", "__MACOSX/z.mp4"))
    assert len(listing.videos) == len(names)
    assert listing.left_alone == {".srt": 2, "": 1}


def test_files_left_alone_are_named(tmp_path, caplog):
    touch(tmp_path, "a/x.mp4", "b/y.docx", "b/z.docx", "b/noext")
    annotations.read(FOLDER, tmp_path)
    assert f"{tmp_path}/b: no video in this folder of a class" in caplog.text
    annotations.VideoFiles(FOLDER, tmp_path)
    assert "left alone, as no videos by their suffix: 2 .docx, 1 without a suffix" in caplog.text
    with pytest.raises(annotations.MissingDataError, match=r"no video in .*/b, but 2 \.docx, 1 without a suffix"):
        annotations.VideoFiles(FOLDER, tmp_path / "b")


def test_folders_of_frames(tmp_path):
    frames = [f"{video}/{i:05d}.jpg" for video in ("walk/1", "walk/2", "run/1.5") for i in range(1, 4)]
    touch(tmp_path, *frames, "run/x.mp4", "run/x_1.jpg", "walk/1/Thumbs.db")
    listing = list_videos(tmp_path)
    assert [video[len(str(tmp_path)) + 1 :] for video in listing.videos] == ["run/x.mp4", "run/1.5", "walk/1", "walk/2"]
    assert len(listing.frame_folders) == 3
    assert listing.left_alone == {".jpg": 1}, "a picture beside a video"
    rows = annotations.read(FOLDER, tmp_path).rows
    assert {row.video for of_split in rows.values() for row in of_split} == {"run/x.mp4", "run/1.5", "walk/1", "walk/2"}
    assert found(tmp_path, "walk/1", "1.5") == ["walk/1", "run/1.5"]
    touch(tmp_path, "jump/00001.jpg")
    with pytest.raises(annotations.AnnotationError, match=r"jump is in no folder of a class; .* a folder of its own"):
        annotations.read(FOLDER, tmp_path)


@pytest.mark.parametrize("prefix", ["/home/other/data/", "D:\\data\\", "data/", "/"])
def test_a_prefix_of_another_machine(tmp_path, prefix, caplog):
    videos = touch(tmp_path / "v", "walk/a.mp4", "walk/b.avi", "run/a.mp4")
    paths = [
        prefix + path.replace("/", "\\" if "\\" in prefix else "/") for path in ("walk/a.mp4", "run/a.mp4", "run/b.avi")
    ]
    assert found(videos, *paths) == ["walk/a.mp4", "run/a.mp4", None], "b.avi of another class is another video"
    assert "paths are found here without their" in caplog.text


def test_names_that_nearly_fit(tmp_path):
    videos = touch(
        tmp_path / "v", "train/a.mp4", "b/x.webm", "b/HandstandPushups_g01.avi", "c/d.mp4", "e/d.mp4", "d2.mp4"
    )
    paths = ["a.mp4", "b/x.avi", "b\\x.webm", "b/HandStandPushups_g01.avi", "d.mp4", "c/d"]
    assert found(videos, *paths) == [
        "train/a.mp4",
        "b/x.webm",
        "b/x.webm",
        "b/HandstandPushups_g01.avi",
        None,  # one of two
        "c/d.mp4",
    ]


def test_none_is_found(tmp_path):
    with pytest.raises(
        annotations.MissingDataError, match=r"none of the videos .* looked for q/y\.mp4, found there .*x\.mp4"
    ):
        found(touch(tmp_path / "v", "x.mp4"), "q/y.mp4", "q/z.mp4", "n" * 300)


def test_a_name_that_is_not_utf_8(tmp_path):
    name = b"caf\xe9/\xff.mp4".decode("utf-8", "surrogateescape")
    result = annotations.read(FOLDER, touch(tmp_path, name, "b/x.mp4"))
    assert result.class_names["label"] == ["b", "caf\\xe9"]
    row = next(row for rows in result.rows.values() for row in rows if row.labels["label"] == 1)
    assert row.video == "caf\\xe9/\\xff.mp4"
    assert annotations.VideoFiles(FOLDER, tmp_path).find(row)[0] == tmp_path / name


def test_ucf101_in_another_letter_case(tmp_path):
    lists = touch(tmp_path, "v/HandstandPushups/v_HandstandPushups_g01_c01.avi") / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 HandstandPushups\n")
    (lists / "TrainList01.txt").write_text("HandStandPushups/v_HandStandPushups_g01_c01.avi 1\n")
    dataset = catalog.get("ucf101")
    row = annotations.read(dataset, tmp_path).rows["train"][0]
    assert annotations.VideoFiles(dataset, tmp_path / "v").find(row)[0].name == "v_HandstandPushups_g01_c01.avi"
