"""The devices of a run: what is logged, warned of and refused."""

import os
import subprocess
import sys

import jax
import pytest
from absl import logging

from tests.conftest import REPOSITORY
from vivit_jax.utils import devices


@pytest.fixture
def lines(monkeypatch):
    """What is logged, in order."""
    logged = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda text, *values: logged.append(text % values))
    return logged


def test_devices_are_announced_and_an_idle_gpu_is_warned_of(lines, monkeypatch):
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["/dev/nvidia0"] * ("nvidia" in pattern))
    monkeypatch.setattr(devices, "_requested", lambda: None)
    devices.announce()
    assert lines[0] == f"jax {jax.__version__} on cpu: {jax.device_count()} x cpu."
    assert "has 1 x NVIDIA GPU, but jax uses the CPU alone" in lines[1]
    assert "vivit_jax[cuda]" in lines[1]
    monkeypatch.setattr(devices, "_requested", lambda: "cpu")  # the user's choice
    devices.announce()
    assert len(lines) == 3


def test_a_large_model_on_a_cpu_is_warned_of(lines):
    devices.warn_of_large_model("ViViT-S/16x2", 384)
    assert lines == []
    devices.warn_of_large_model("ViViT-B/16x2", 768)
    assert "ViViT-B/16x2 (width 768) on a CPU" in lines[0]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_ends_in_one_line(platform, tmp_path):
    arguments = ["--config=configs/moving_digits.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "vivit_jax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": platform},
    )
    if done.returncode == 0:
        pytest.skip(f"{platform} is there")
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX_PLATFORMS={platform}: jax cannot start that backend")
    assert "Traceback" not in done.stderr
