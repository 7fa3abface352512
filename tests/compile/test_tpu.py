"""Real configs compiled for real slices, held to the memory that docs/tpu.json records. Needs libtpu (extra `tpu`)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

RECORDED = REPOSITORY / "docs" / "tpu.json"
ONE_MORE = 1.05  # of the recorded peak: a compiler may change a little
COMPILED = [
    ("configs/k400_vivit_l.py", "v3-32"),
    ("configs/k400_vivit_b_fe.py", "v5e-16"),
    ("configs/k400_vivit_b_fe.py", "v4-8"),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'vivit_jax[tpu]'"),
]


def run(*arguments):
    """`python -m vivit_jax.compile` in a process of its own: the compiler is loaded once, for one kind of TPU."""
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "vivit_jax.compile", "--step=train", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)


def recorded(config, slice_):
    entries = json.loads(RECORDED.read_text())["entries"]
    return next(entry for entry in entries if (entry["config"], entry["slice"]) == (config, slice_))


@pytest.mark.parametrize(("config", "slice_"), COMPILED)
def test_a_config_takes_no_more_memory_than_was_recorded(config, slice_):
    entry = recorded(config, slice_)
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in entry["mesh"].items()]
    done = run(f"--config={config}", f"--slice={slice_}", f"--config.model.remat={entry['remat']}", *mesh)
    assert done.returncode == 0, done.stdout + done.stderr
    gib = float(done.stdout.partition("memory")[2].split()[0])
    assert gib * 2**30 <= ONE_MORE * entry["peak"]
    assert "all-reduce over data" in done.stdout


def test_what_does_not_fit_is_refused_with_advice():
    done = run("--config=configs/k400_vivit_l.py", "--slice=v3-32", "--config.model.remat=none")
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert "what takes less: config.model.remat=full" in done.stdout


def test_a_mesh_that_does_not_divide_the_batch_is_refused_before_anything_compiles():
    done = run("--config=configs/k400_vivit_l.py", "--slice=v3-256")
    assert done.returncode == 1
    assert "batch_size=64 is not divided by the 256 devices" in done.stderr


def test_what_goes_between_slices_is_told_apart():
    """Parameters are split within a slice: another slice gets their gradients alone, a share from each device."""
    done = run("--config=configs/moving_digits.py", "--topology=2xv5e:4x4", "--mesh=data=-1,fsdp=16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 devices" in done.stdout
    sent = [line.split()[1:4] for line in done.stdout.splitlines() if "traffic" in line]
    assert ["send", "over", "slices:"] in sent
