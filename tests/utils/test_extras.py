"""Programs without the packages of an extra."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Runs a module as `python -m` does, with the packages of the extra `train` hidden.
HIDE_AND_RUN = """
import runpy, sys
for name in ("av", "clu", "matplotlib", "PIL", "sklearn", "tensorflow", "tensorflow_datasets", "tqdm"):
    sys.modules[name] = None
module, sys.argv = sys.argv[1], ["-m", *sys.argv[2:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("main", ["--config=configs/moving_digits.py", "--workdir=run"]),
        ("sweep", ["--config=configs/study.py", "--workdir=run"]),
        ("predict", []),
        ("probe", []),
        ("preview", []),
        ("data.build", []),
    ],
)
def test_program_without_its_extra_ends_in_one_line(program, flags):
    command = [sys.executable, "-c", HIDE_AND_RUN, f"vivit_jax.{program}", *flags]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.endswith('needs the extra train: pip install "vivit_jax[train]"\n')
    assert len(ended.stderr.splitlines()) == 1
