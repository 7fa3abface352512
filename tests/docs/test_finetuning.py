"""docs/finetuning.md: its command trains on files like those of the page, and its log ends with what to try next."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.helpers.videos import write_video
from vivit_jax import finetuning
from vivit_jax.config.experiment import ConfigError
from vivit_jax.config.fields import differences
from vivit_jax.config.flags import load_config
from vivit_jax.models.config import INHERITED_FIELDS

PAGE = REPOSITORY / "docs" / "finetuning.md"
# Makes the run small, and shows that given values win.
SMALL = {"num_epochs": 3.0, "model.hidden_size": 24, "model.num_layers": 1, "optimizer.learning_rate": 0.003}
PARTS = {"hello": 40, "stop": 40, "web": 4}  # videos


def make_videos(folder):
    """Writes clips of 4 to 10 frames, in which a bright field moves right, left or not, and a list with speakers."""
    random, rows = np.random.default_rng(0), ["path,label,group"]
    for label, count in PARTS.items():
        for number in range(count):
            frames = np.full((random.integers(4, 11), 32, 40, 3), 60 + 10 * (number % 8), np.uint8)
            for time, frame in enumerate(frames):
                left = {"hello": 3 * time, "stop": 28 - 3 * time, "web": 16}[label] + random.integers(3)
                frame[8:24, max(left, 0) : left + 8] = 220
            write_video(folder / f"{label}_{number}.mp4", list(frames))
            rows.append(f"{label}_{number}.mp4,{label},speaker {number % 8}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
@pytest.mark.long
def test_page(tmp_path, monkeypatch):
    make_videos(tmp_path / "words")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    command = re.search(r"^python (-m vivit_jax\.main .*)$", PAGE.read_text(), re.M)[1]
    words = shlex.split(command) + [f"--config.{name}={value}" for name, value in SMALL.items()]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment, "timeout": 600}
    done = subprocess.run([sys.executable, *words], **run)
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stderr
    assert re.search(r"of the 8 groups for the validation split", log)
    assert re.search(r"Videos of a class of label: \d \(web\) to \d\d \((hello|stop)\)", log)
    assert re.search(r"Clips of 8 frames, one from each of as many segments: \d+% of the videos have fewer", log)
    accuracy, confused, advice = log.strip().splitlines()[-3:]
    assert re.search(
        r"Accuracy of label: [\d.]+% of \d+ held-out videos .* training videos; the largest class is \d\d", accuracy
    )
    assert "Most confused: " in confused
    assert "Try next: " in advice

    stored = json.loads((tmp_path / "runs" / "words" / "config.json").read_text())
    for name, value in SMALL.items():
        section, _, field = name.rpartition(".")
        assert (stored[section] if section else stored)[field] == value, name
    assert stored["batch_size"] == 16

    # The same command again, and the evaluation of the best checkpoint, derive the same.
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/finetune.py")
    config.update_from_flattened_dict({**SMALL, "data.video_dir": "words"})
    again = finetuning.experiment_of(config).to_dict()
    inherited = {f"model.{name}" for name in INHERITED_FIELDS}
    assert not differences(stored, again, without=inherited)
    evaluated = subprocess.run([sys.executable, *words, "--mode=eval"], **run)
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]


def test_videos_are_needed():
    with pytest.raises(ConfigError, match=r"which videos\? set --config\.data\.video_dir=FOLDER"):
        finetuning.experiment_of(load_config(str(REPOSITORY / "configs" / "finetune.py")))
