"""Preview: exactly the pixels and labels of a training step."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits
from tests.helpers.experiment import config_file
from vivit_jax import preview
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_data
from vivit_jax.train_step import TrainState, make_train_step
from vivit_jax.utils import plots


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five clips per batch, so that the last has no partner."""
    folder = tmp_path_factory.mktemp("data")
    build_digits(folder, 12, 8)
    config = config_file("moving_digits")
    config.data.dir = str(folder)
    config.batch_size = 5
    config.evaluation.batch_size = 5
    config.model.update(num_frames=4, image_size=28, tubelet_size=(4, 14, 14))
    config.augment.update(grayscale_probability=0.5, erase_probability=0.7, mixup=2.0)
    return Experiment.from_config(config)


def test_preview_shows_the_input_of_that_training_step(run):
    clips = preview.preview(run, clips=3, step=2)
    train_set, _ = open_data(run.data)
    spec = run.clip_spec(run.model_config(train_set.heads))
    with pipeline.train_batches(train_set, spec, batch_size=5, seed=run.seed, start_step=2) as batches:
        batch = next(batches)
    inputs = []

    def model(variables, video, train, rngs):
        jax.debug.callback(lambda pixels: inputs.append(np.array(pixels)), video)
        return {head: jnp.zeros((5, classes)) + variables["params"] for head, classes in train_set.heads.items()}

    optimizer = optax.sgd(0.0)
    state = TrainState.create(jnp.zeros(()), optimizer).replace(step=jnp.asarray(2, jnp.int32))
    step = make_train_step(model, optimizer, lambda s: 0.1, seed=run.seed, augment=run.augment)
    jax.jit(step)(state, batch)
    jax.effects_barrier()
    np.testing.assert_array_equal(clips.before, batch["video"][:3])
    np.testing.assert_allclose(clips.after, (inputs[0][:3] + 1) * 127.5, atol=0.51)
    assert (clips.after != clips.before).any()
    for clip in range(3):
        names = [train_set.class_names[head][batch["label"][head][clip]] for head in ("verb", "noun")]
        assert clips.captions_before[clip] == "verb: {}, noun: {}".format(*names)
        assert all(name in clips.captions_after[clip] for name in names)


def test_captions_name_both_clips_shares_and_padding():
    labels = {
        "verb": np.array([0, 1, 2, 2, 1]),
        "label": np.array([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]], np.float32),
    }
    names = {"verb": ["open", "close", "cut"], "label": ["door", "box"]}
    shares = np.array([0.75, 0.5, 0.25, 1.0, 0.3])
    assert preview.captions(labels, np.array([1, 1, 1, 1, 0]), names, shares) == [
        "verb: 75% open + 25% close, 75% door + 25% door & box",
        "verb: 50% close + 50% open, 50% door & box + 50% door",
        "verb: cut, 25% no label + 75% box",
        "verb: cut, box",
        "padding: the record cannot be read",
    ]
    assert preview.captions(labels, np.ones(5), names)[0] == "verb: open, door"


def test_pictures_show_every_clip_before_and_after(run, tmp_path):
    clips = preview.preview(run, clips=9)
    assert clips.before.shape == clips.after.shape == (5, 4, 28, 28, 3)
    title = preview.describe(run, 0)
    assert title == "moving_digits, step 0; grayscale_probability=0.5, erase_probability=0.7, mixup=2.0"
    sheet = np.asarray(Image.open(plots.save(preview.contact_sheet(clips, title), tmp_path / "new" / "clips.png")))
    assert sheet.shape[0] > sheet.shape[1]  # ten rows
    frames = list(preview.animation(clips, title))
    assert [(frame.shape[0] % 2, frame.shape[1] % 2) for frame in frames] == [(0, 0)] * 4
    assert all((first != second).any() for first, second in itertools.pairwise(frames))


@pytest.mark.slow
def test_command_writes_the_file_and_prints_its_name(run, tmp_path):
    out = tmp_path / "new" / "clips.gif"
    command = [
        sys.executable, "-m", "vivit_jax.preview", "--config=configs/moving_digits.py", f"--out={out}", "--clips=2",
        f"--config.data.dir={run.data.dir}", "--config.batch_size=4", "--config.augment.cutmix=1.0",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out)]
    assert Image.open(out).n_frames == 16
