"""Opening the data of a config."""

import dataclasses
import shutil

import pytest
from PIL import Image

from tests.helpers.experiment import experiment
from vivit_jax.data.config import DataConfig
from vivit_jax.data.open import open_data


def test_folder_of_videos_becomes_a_custom_data_set(data_dir, tmp_path):
    clips = sorted((data_dir / "moving_digits" / "videos").glob("*.mp4"))
    for number, clip in enumerate(clips[:6]):
        folder = tmp_path / "mine" / ("train" if number < 4 else "val") / ("wave", "nod")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    (tmp_path / "mine" / "class_list.txt").write_text("nod\nwave\n")
    fields = {
        "data__name": "gestures",
        "data__dir": str(tmp_path / "records"),
        "data__video_dir": str(tmp_path / "mine"),
    }
    train_set, eval_set = open_data(experiment(data_dir, **fields).data)
    assert (train_set.num_videos, eval_set.num_videos) == (4, 2)
    assert train_set.class_names == {"label": ["nod", "wave"]}, "class_list.txt is no list of videos"
    (tmp_path / "mine" / "train" / "nod" / "late.mp4").write_bytes(b"")  # records that exist are not rebuilt
    assert open_data(experiment(data_dir, **fields).data)[0].num_videos == 4
    with pytest.raises(
        ValueError, match=r"'kinetics400' is taken .*: choose another with --name \(config\.data\.name\)"
    ):
        open_data(experiment(data_dir, **(fields | {"data__name": "kinetics400"})).data)
    with pytest.raises(ValueError, match=r"label_separator is ',' for a csv; it is for a csv, and one of ; \|"):
        open_data(experiment(data_dir, **fields, data__annotations="a.csv", data__label_separator=",").data)
    (tmp_path / "mine" / "train.txt").write_text("train/nod/a.mp4 nod\n")  # a list of videos
    with pytest.raises(ValueError, match=r"holds records with kind folder \(csv requested\): give another"):
        open_data(experiment(data_dir, **fields).data)
    (tmp_path / "mine").rename(tmp_path / "elsewhere")  # the records remain
    assert open_data(experiment(data_dir, **fields).data)[0].num_videos == 4


def test_lists_of_folders_of_frames(tmp_path):
    for name in ("1", "2", "3"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for frame in (1, 2, 3):
            Image.new("RGB", (32, 32)).save(tmp_path / "mine" / name / f"img_{frame:05d}.jpg")
    (tmp_path / "train.txt").write_text("wave 3 1\nnod 3 2\n")
    (tmp_path / "val.txt").write_text("nod 3 3\n")
    fields = {"name": "gestures", "dir": str(tmp_path / "records"), "video_dir": str(tmp_path / "mine"), "fps": 12.0}
    data = DataConfig(**fields, annotations=str(tmp_path), columns="label,-,path")
    train_set, eval_set = open_data(data)
    assert (train_set.num_videos, eval_set.num_videos, eval_set.fps.tolist()) == (2, 1, [12])
    assert train_set.class_names == {"label": ["nod", "wave"]}
    with pytest.raises(ValueError, match=r"holds records with columns label,-,path \(-,label,path requested\)"):
        open_data(dataclasses.replace(data, columns="-,label,path"))
    with pytest.raises(ValueError, match=r"data\.fps=12\.0 is for a custom data set: set data\.video_dir too"):
        DataConfig(fps=12.0)
