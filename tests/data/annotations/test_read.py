"""Kinetics and EPIC-Kitchens: the official files as published, and the errors for missing or malformed ones."""

import pytest

from tests.helpers.videos import numbered_video
from vivit_jax.data import annotations, catalog

KINETICS_TRAIN = '''label,youtube_id,time_start,time_end,split,is_cc
"testifying",---QUuC4vJs,84,94,train,0
"cooking sausages (not on barbeque)",-1IlTIWPNs4,47,57,train,0
"playing ""rock, paper, scissors""",aBc_dEf-123,5,15,train,1
abseiling,zzzzzzzzzzz,0,10,train,0
'''
KINETICS_VALIDATION = """label,youtube_id,time_start,time_end,split
abseiling,0wR5jVB-WPk,417,427,validate
testifying,3caPS4FHFF8,36,46,validate
"""
EPIC_TRAIN = """narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,\
stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]
P22_117_5,P22,P22_117,01:02:03.500,01:02:03.45,01:02:05.00,1,2,"take cup, tap",take,0,cup,1,"['cup', 'tap']","[1, 0]"
"""
EPIC_VERBS = "id,key,instances\n0,take,\"['take', 'grab']\"\n1,put,['put']\n2,wash,['wash']\n3,open,['open']\n"
EPIC_NOUNS = "id,key,instances\n0,tap,['tap']\n1,cup,['cup']\n2,plate,['plate']\n3,door,['door']\n"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def epic(folder):
    return write(folder, EPIC_100_train=EPIC_TRAIN, EPIC_100_verb_classes=EPIC_VERBS, EPIC_100_noun_classes=EPIC_NOUNS)


def test_kinetics(tmp_path):
    read = annotations.read(
        catalog.get("kinetics400"), write(tmp_path, train=KINETICS_TRAIN, validate=KINETICS_VALIDATION)
    )
    names = ["abseiling", "cooking sausages (not on barbeque)", 'playing "rock, paper, scissors"', "testifying"]
    assert read.class_names == {"label": names}
    assert [(r.video, r.start, r.end, r.labels["label"]) for r in read.rows["train"]] == [
        ("---QUuC4vJs", 84, 94, 3),
        ("-1IlTIWPNs4", 47, 57, 1),
        ("aBc_dEf-123", 5, 15, 2),
        ("zzzzzzzzzzz", 0, 10, 0),
    ]
    assert [r.labels["label"] for r in read.rows["validation"]] == [0, 3]
    assert set(read.rows) == {"train", "validation"}


@pytest.mark.parametrize(
    ("file_name", "is_cut"),
    [
        ("---QUuC4vJs_000084_000094.mp4", True),
        ("train/---QUuC4vJs_000084_000094.mp4", True),
        ("testifying/---QUuC4vJs_000084_000094.mkv", True),
        ("train/testifying/---QUuC4vJs_000084_000094.webm", True),
        ("train/---QUuC4vJs.mp4", False),
        ("---QUuC4vJs.MP4", False),
    ],
)
def test_kinetics_video_files(tmp_path, file_name, is_cut):
    dataset = catalog.get("kinetics400")
    row = annotations.read(dataset, write(tmp_path / "a", train=KINETICS_TRAIN)).rows["train"][0]
    file = tmp_path / "v" / file_name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert annotations.VideoFiles(dataset, tmp_path / "v").find(row) == (file, *((None, None) if is_cut else (84, 94)))


def test_kinetics_missing_video(tmp_path):
    dataset = catalog.get("kinetics400")
    rows = annotations.read(dataset, write(tmp_path / "a", train=KINETICS_TRAIN)).rows["train"]
    numbered_video(tmp_path / "v" / "zzzzzzzzzzz.mp4", 2)
    files = [annotations.VideoFiles(dataset, tmp_path / "v").find(row) for row in rows]
    assert [file is not None for file in files] == [False, False, False, True]


def test_epic(tmp_path):
    dataset = catalog.get("epic_kitchens100")
    read = annotations.read(dataset, epic(tmp_path / "a"))
    first, second = read.rows["train"]
    assert (first.start, first.end, first.labels) == (0.14, 3.37, {"verb": 3, "noun": 3})
    assert (second.start, second.end) == pytest.approx((3723.45, 3725.0))
    assert second.labels == {"verb": 0, "noun": 1}
    assert read.class_names["noun"] == ["tap", "cup", "plate", "door"]
    for file_name in ("P01/videos/P01_01.MP4", "P01/P01_01.MP4", "P01_01.mp4"):
        file = tmp_path / file_name.replace("/", "_") / file_name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        video_files = annotations.VideoFiles(dataset, tmp_path / file_name.replace("/", "_"))
        assert video_files.find(first) == (file, 0.14, 3.37)
        assert video_files.find(second) is None


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("EPIC_100_train", (",verb_class,", ",verb_number,"), "no column verb_class; found narration_id"),
        ("EPIC_100_train", ("open,3,door", "open,4,door"), "line 2: verb_class 4 is outside 0 to 3"),
        ("EPIC_100_train", ("00:00:03.37", "3.37"), "'3.37' is not a time HH:MM:SS.ss"),
        ("EPIC_100_train", ("00:00:03.37", "00:00:00.01"), "ends at 0.01 s, before its start"),
        ("EPIC_100_noun_classes", ("3,door", "7,door"), "the ids are not 0 to 3"),
    ],
)
def test_epic_errors(tmp_path, file, change, message):
    path = epic(tmp_path) / f"{file}.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(annotations.AnnotationError, match=message):
        annotations.read(catalog.get("epic_kitchens100"), tmp_path)


def test_kinetics_errors(tmp_path):
    dataset = catalog.get("kinetics600")
    write(tmp_path, train=KINETICS_TRAIN, val=KINETICS_VALIDATION.replace("abseiling", "absailing"))
    with pytest.raises(annotations.AnnotationError, match=r"line 2: label 'absailing' has no training video"):
        annotations.read(dataset, tmp_path)
    write(tmp_path, train=KINETICS_TRAIN.replace("84,94", "84,end"))
    with pytest.raises(annotations.AnnotationError, match="time_end is 'end', not a number"):
        annotations.read(dataset, tmp_path)


def test_missing_data_message(tmp_path):
    dataset = catalog.get("kinetics400")
    with pytest.raises(annotations.MissingDataError) as caught:
        annotations.read(dataset, tmp_path / "annotations")
    for part in (
        str(tmp_path / "annotations"),
        "train.csv",
        "cvdfoundation",
        "vivit_jax.data.build --dataset=kinetics400",
    ):
        assert part in str(caught.value)
    with pytest.raises(annotations.MissingDataError) as caught:
        annotations.VideoFiles(dataset, tmp_path / "videos")
    for part in (str(tmp_path / "videos"), "{id}_{start:06d}_{end:06d}.mp4"):
        assert part in str(caught.value)
