"""Ranking, explanations, batches of files with any names, and the command line."""

import json
import os
import shutil
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import vivit_jax
from tests.conftest import REPOSITORY
from tests.helpers.small_models import random_params, small_config
from tests.helpers.videos import numbered_video
from vivit_jax import convert
from vivit_jax.checkpoint import CheckpointError
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.data.video import decode
from vivit_jax.evaluation.predictions import rank_labels
from vivit_jax.models import inference
from vivit_jax.models.attention_choice import Device
from vivit_jax.models.relevance import relevance
from vivit_jax.predict import Predictor, __main__, inputs, write_explanation
from vivit_jax.train_step import normalise


def test_actions_are_ranked_by_product_of_softmaxes():
    logits = {"verb": np.array([0.0, 2.0, 1.0]), "noun": np.array([3.0, 0.0])}
    names = {"verb": ["open", "close", "cut"], "noun": ["door", "box"]}
    ranked = rank_labels(logits, names, 2)
    verb = np.exp(logits["verb"]) / np.exp(logits["verb"]).sum()
    noun = np.exp(logits["noun"]) / np.exp(logits["noun"]).sum()
    assert [label for label, _ in ranked["verb"]] == ["close", "cut"]
    assert ranked["action"][0] == ("close door", pytest.approx(verb[1] * noun[0], rel=1e-5))
    assert ranked["action"][1] == ("cut door", pytest.approx(verb[2] * noun[0], rel=1e-5))


LABELS = [r"a$\frac{$b", "打篮球", "jump", "jump ", "कूद"]
NAMES = [  # that a file system allows
    *(b"x%03d.mp4", b"h#1.mp4", b"q?1.mp4", b"-dash.mp4", "日本.mp4".encode(), b"\xff\xfe.mp4", rb"$\frac{$.mp4"),
    *(b"n" * 250 + b".mp4", b"a/c.mp4", b"b/c.mp4", b"b/c.webm", b"[1].mp4", b"new\nline.mp4"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = small_config()
    folder = tmp_path_factory.mktemp("predict") / "run"
    convert.save_params(random_params(config, dtype=np.float32), folder, "orbax", config, {"label": LABELS})
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of files with the `NAMES`, and of what is no video."""
    folder = os.fsencode(tmp_path_factory.mktemp("videos"))
    video = numbered_video(tmp_path_factory.mktemp("video") / "video.mp4", 20)
    for name in NAMES:
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        shutil.copy(video, os.path.join(folder, name))
    os.mkfifo(os.path.join(folder, b"pipe"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.join(folder, b"socket"))
    return os.fsdecode(folder)


def test_no_file_or_name_ends_a_batch(checkpoint, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(videos)
    bad = {"pipe": "a named pipe", "socket": "a socket", "/dev/null": "a device", "none": "no such file", "": "folder"}
    bad |= {"no://x.mp4": "not a known kind of storage", "z" * 300: "too long"}
    files = [*bad, *map(os.fsdecode, NAMES)]
    predictor = Predictor(checkpoint)
    results = dict(predictor.predict(files))
    assert list(results) == files
    for file, message in bad.items():
        assert isinstance(results[file], Exception)
        assert message in str(results[file])
    single = predictor(files[-1])
    pictures = [__main__.draw(results[file], tmp_path) for file in files[-len(NAMES) :]]
    assert len(set(pictures)) == len(NAMES), "one picture overwrote another"
    assert __main__.draw(single, tmp_path) == pictures[-1], "the same file has the same picture"
    for file in files[-len(NAMES) :]:  # in batches as alone
        assert [label for label, _ in results[file].ranked["label"]] == [label for label, _ in single.ranked["label"]]
        np.testing.assert_allclose(
            [p for _, p in results[file].ranked["label"]], [p for _, p in single.ranked["label"]], rtol=1e-4
        )


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_explanation_is_a_video_of_the_relevance_of_all_clips(checkpoint, videos, tmp_path, monkeypatch, platform):
    monkeypatch.setattr(inference, "target_device", lambda: Device(platform))  # GPUs hold each layer apart
    predictor = vivit_jax.load(checkpoint, temporal_views=2, spatial_views=3, dtype="float32")
    prediction = predictor.explain(os.path.join(videos, "b", "c.mp4"), tmp_path / "of" / "c.mp4")
    np.testing.assert_array_equal(prediction.clips, prediction.views[[1, 4]], "the middle crops of both clips")
    params = inference.stacked(predictor._params)
    clip, best = normalise(prediction.clips[1:]), LABELS.index(prediction.ranked["label"][0][0])
    expected = np.asarray(relevance(predictor.model.config, params, clip, np.array([best])))[0]
    np.testing.assert_allclose(prediction.relevance[1], expected / expected.sum(), rtol=1e-4, atol=1e-6)
    assert np.abs(prediction.relevance - prediction.explain("rollout")).max() > 1e-3

    frames = [frame.image for frame in decode.iterate_frames(tmp_path / "of" / "c.mp4")]
    assert len(frames) == 2 * len(prediction.clips[0])
    bars = [frame[-140:].reshape(-1, 3).astype(int) for frame in frames]
    assert all(np.abs(one - two).max() > 60 for one, two in zip(bars[1::4], bars[2::4], strict=False)), "it moves on"
    write_explanation(prediction, tmp_path / "c.gif", "rollout")
    with Image.open(tmp_path / "c.gif") as picture:
        assert (picture.n_frames > 1, picture.size) == (True, frames[0].shape[1::-1])
    with pytest.raises(ValueError, match=r"c\.avi must end in \.mp4, \.gif, \.webp"):
        write_explanation(prediction, tmp_path / "c.avi")


def test_explanations_in_a_folder_have_names_of_their_own(tmp_path):
    taken = set()
    paths = [__main__.explanation_path(file, str(tmp_path), taken) for file in ("a/c.mp4", "b/c.mp4", "d.mp4")]
    assert len({*paths}) == 3
    assert (paths[0].name, paths[2].name) == ("explanation_c.mp4", "explanation_d.mp4")
    assert str(__main__.explanation_path("c.mp4", "out.GIF", taken)) == "out.GIF"
    with pytest.raises(ValueError, match=r"--explain=out\.avi must end in"):
        __main__.is_folder("out.avi")


def test_command_prints_any_name_on_any_terminal(checkpoint, videos):
    """Labels and names that are not of the terminal's encoding, and names with `-`."""
    command = [sys.executable, "-m", "vivit_jax.predict", f"--workdir={checkpoint}", "--temporal_views=2", "--json"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    run = {"capture_output": True, "text": True, "cwd": videos, "timeout": 300, "env": environment}
    done = subprocess.run([*command, "-dash.mp4"], **run)
    assert done.returncode == 2
    assert "give it as ./-dash.mp4 or after --" in done.stderr
    done = subprocess.run([*command, "--", "-dash.mp4", "b", "*fe.mp4", os.fsdecode(b"\xff\xfe.mp4"), "pipe"], **run)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines[:3]] == ["-dash.mp4", "b/c.mp4", "b/c.webm"]
    assert [("labels" in line) for line in lines] == [True, True, True, False, True, False]
    assert set(dict(lines[0]["labels"]["label"])) == set(LABELS)
    assert "2 of 6 files could not be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_folders_and_patterns_are_the_videos_in_them(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.mp4", "a/b/2.webm", "a/note.txt", "c[1].mp4", "f/img_00001.jpg", "f/img_00002.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(inputs.videos(["a", "a/**/*.webm", "c[1].mp4", "f", "none*"])) == [
        *("a/1.mp4", "a/b/2.webm", "a/b/2.webm", "c[1].mp4", "f", "none*"),
    ]
    assert caplog.messages == ["a: left alone, as no videos by their suffix: 1 .txt"]


def test_preprocessing_comes_from_the_checkpoint_alone(tmp_path):
    """Of older ones it is assumed, and said."""
    config = small_config()
    stored = {"num_frames": 4, "image_size": [8, 12], "stride": 3, "short_side": 20, "sampling": "random_start"}
    stored |= {"stored_short_side": 99, "stored_fps": 8.0, "pixels": "x / 127.5 - 1"}
    told = Preprocessing.of_checkpoint({"config": {}, "preprocessing": stored}, config)
    assert told.to_dict() == stored
    assert not told.assumed
    run = {"config": {"input": {"stride": 3}, "data": {"name": "something_something_v2"}}, "data": {"dataset": "x"}}
    trained = Preprocessing.of_checkpoint(run, config)
    assert (trained.clip.stride, trained.stored_short_side) == (3, 288)
    assert "288 pixels, as by default for something_something_v2" in trained.assumed
    converted = Preprocessing.of_checkpoint({"config": {}, "data": {}}, small_config(num_frames=32))
    assert (converted.clip.stride, converted.clip.short_side) == (2, round(8 * 256 / 224)), "as in the paper"
    assert "32 frames of stride 2" in converted.assumed


def test_pretrained_weights_predict_as_converted(tmp_path, videos):
    """Those of Hugging Face, whose 400 classes without names are Kinetics'."""
    config = small_config(num_classes=400)
    params = random_params(config, dtype=np.float32)
    convert.save_params(params, tmp_path / "hf", "huggingface", config)
    convert.save_params(params, tmp_path / "run", "orbax", config)
    path = os.path.join(videos, "b", "c.mp4")
    direct, converted = (vivit_jax.load(tmp_path / name, temporal_views=2)(path, top=3) for name in ("hf", "run"))
    names = (REPOSITORY / "vivit_jax" / "predict" / "classes" / "kinetics400.txt").read_text().splitlines()
    for (label, share), (number, expected) in zip(direct.ranked["label"], converted.ranked["label"], strict=True):
        assert names.index(label) == int(number.removeprefix("LABEL_"))
        assert share == pytest.approx(expected, rel=1e-5)


def test_model_without_classifier_is_refused(tmp_path):
    config = small_config(num_classes=None)
    convert.save_params(random_params(config, dtype=np.float32), tmp_path / "run", "orbax", config)
    with pytest.raises(CheckpointError, match="without a classifier"):
        Predictor(tmp_path / "run")


def test_missing_checkpoint_error_names_the_path(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vivit_jax.predict", f"--workdir={tmp_path}", "clip.mp4"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"no checkpoint at {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timeline": "out", "explain": "out.mp4"}, "--explain and --pictures are of whole videos"),
        ({"timeline": "", "pictures": "out"}, "--explain and --pictures are of whole videos"),
        ({"hop": "2s"}, "--hop and --stride are about the windows of --timeline"),
        ({"stride": 2, "explain": "out.gif"}, "--hop and --stride are about the windows of --timeline"),
    ],
)
def test_flags_without_effect_are_refused(given, message, monkeypatch):
    class Options(dict):
        def __getattr__(self, name):
            return self[name].value

    absent = dict.fromkeys(("checkpoint", "explain", "pictures", "timeline", "hop", "stride"))
    options = {"workdir": "run"} | absent | given
    options = {name: types.SimpleNamespace(value=value, present=name in given) for name, value in options.items()}
    monkeypatch.setattr(__main__.flags, "FLAGS", Options(options))
    with pytest.raises(SystemExit, match=message):
        __main__.main(["predict", "clip.mp4"])
