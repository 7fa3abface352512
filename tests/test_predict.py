"""Ranking, attention maps of every model, batches of files with any names, and the command line."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vivit_jax
from tests.conftest import REPOSITORY
from tests.helpers.small_models import random_params, small_config
from tests.helpers.videos import numbered_video
from vivit_jax import convert
from vivit_jax.checkpoint import CheckpointError
from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.evaluation.predictions import rank_labels
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.predict import Predictor, __main__, attention_map
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


@pytest.mark.parametrize(
    ("attention", "fields"),
    [
        ("spatiotemporal", {}),
        ("spatiotemporal", {"classifier": "gap"}),
        ("factorised_encoder", {}),
        ("factorised_encoder", {"temporal_layers": 0}),
        ("factorised_self_attention", {}),
        ("factorised_dot_product", {}),
    ],
)
def test_attention_map_comes_from_last_layer(attention, fields):
    """Model 1: equal to the weights. All models: a distribution over the grid that moves with the frames."""
    config = ViViTConfig(
        hidden_size=8, num_layers=1, num_heads=2, mlp_dim=8, num_frames=6, image_size=(8, 12), tubelet_size=(2, 4, 4),
        attention=attention, num_classes=3, **{"temporal_layers": 1} | fields,
    )  # fmt: skip
    model = ViViT(config)
    video = np.full((1, *config.video_shape), 128, np.uint8)
    video[:, 2:4, 4:8, 8:12] = 255  # grid index (1, 1, 2)
    params = model.init(jax.random.key(0), jnp.zeros((1, *config.video_shape)))["params"]

    where = attention_map(model.apply, config, params, video)
    assert where.shape == (3, 2, 3)
    assert float(where.sum()) == pytest.approx(1, abs=1e-5)

    # Equal to the attention weights of the class token, or of the average query.
    if attention == "spatiotemporal":
        _, sown = model.apply({"params": params}, normalise(video), sow_attention=True, mutable=["intermediates"])
        weights = np.asarray(sown["intermediates"]["encoder"]["layers"]["attention"]["weights"])[0, 0].mean(0)
        expected = weights[0, 1:] if config.classifier == "token" else weights.mean(0)
        np.testing.assert_allclose(np.ravel(where), expected / expected.sum(), rtol=1e-5)

    # Without position embeddings, the map of a factorised model moves with the frames.
    if attention.startswith("factorised_") and config.temporal_layers:
        still = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.zeros_like(x) if "position_embedding" in str(path) else x, params
        )
        turned = np.concatenate([video[:, 4:], video[:, :4]], axis=1)  # by one tubelet
        before, after = (attention_map(model.apply, config, still, v) for v in (video, turned))
        np.testing.assert_allclose(np.roll(before, 1, axis=0), after, rtol=1e-4, atol=1e-6)


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


def test_folders_and_patterns_are_the_videos_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.mp4", "a/b/2.webm", "a/note.txt", "c[1].mp4", "f/img_00001.jpg", "f/img_00002.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(__main__.videos(["a", "a/**/*.webm", "c[1].mp4", "f", "none*"])) == [
        *("a/1.mp4", "a/b/2.webm", "a/b/2.webm", "c[1].mp4", "f", "none*"),
    ]


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
