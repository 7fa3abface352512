"""Configs compiled for TPU slices, compared with the memory in docs/tpu.md. Needs libtpu (extra `tpu`)."""

import importlib.util
import os
import subprocess
import sys

import pytest

from benchmarks import tpu_table
from tests.conftest import REPOSITORY
from vivit_jax.compile import slices
from vivit_jax.config.flags import load_config

TOLERANCE = 1.05  # of the recorded memory: compilers change a little
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
    """Runs `python -m vivit_jax.compile` in a subprocess: a process loads the compiler once, for one type of TPU."""
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "vivit_jax.compile", "--step=train", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(("config", "slice_"), COMPILED)
def test_memory_is_at_most_that_of_the_table(config, slice_):
    entry = tpu_table.read(REPOSITORY / "docs" / "tpu.md")[config, slice_]
    mesh = tpu_table.mesh_for(load_config(str(REPOSITORY / config)).batch_size, slices.parse(slice_))
    axes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    axes.append("--config.model.attention_backend=xla")  # which the table is of
    done = run(f"--config={config}", f"--slice={slice_}", f"--config.model.remat={entry.remat}", *axes)
    assert done.returncode == 0, done.stdout + done.stderr
    gib = float(done.stdout.partition("memory")[2].split()[0])
    assert gib <= TOLERANCE * (entry.gib + 0.05)
    assert "all-reduce over data" in done.stdout


def test_a_step_that_does_not_fit_prints_advice():
    fields = ("--config.model.remat=none", "--config.model.attention_backend=xla")
    done = run("--config=configs/k400_vivit_l.py", "--slice=v3-32", *fields)
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert "to reduce memory: config.model.remat=full" in done.stdout


def test_a_mesh_that_does_not_divide_the_batch_is_rejected():
    done = run("--config=configs/k400_vivit_l.py", "--slice=v3-256")
    assert done.returncode == 1
    assert "batch_size=64 is not divided by the 256 devices" in done.stderr


def test_traffic_between_slices_is_listed_apart():
    """With parameters sharded within a slice, only gradients cross to the other slice."""
    done = run("--config=configs/moving_digits.py", "--slice=2xv5e:4x4", "--config.mesh.fsdp=16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 devices" in done.stdout
    traffic = [line.split()[1:4] for line in done.stdout.splitlines() if "traffic" in line]
    assert ["send", "over", "slices:"] in traffic
