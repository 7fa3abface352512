"""The start of programs: packages of an extra that are missing, `~` in flags."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from vivit_jax.utils import extras

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
        ("preview", ["--config=configs/moving_digits.py", "--out=preview.png"]),
        ("data.build", ["--dataset=kinetics400", "--videos=v", "--annotations=a", "--out=o"]),
    ],
)
def test_program_without_its_extra_ends_in_one_line(program, flags):
    command = [sys.executable, "-c", HIDE_AND_RUN, f"vivit_jax.{program}", *flags]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert ended.stderr.endswith('needs the extra train: pip install "vivit_jax[train]"\n')
    assert "Traceback" not in ended.stderr


def test_home_is_expanded_in_flags(tmp_path):
    """A shell expands `~` at the beginning of an argument alone."""
    (tmp_path / "mine.py").write_text("import nothing_of_this_name")
    command = [sys.executable, "-m", "vivit_jax.main", "--config=~/mine.py", "--workdir=~/run"]
    environment = os.environ | {"HOME": str(tmp_path)}
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert "nothing_of_this_name" in ended.stderr


@pytest.mark.parametrize(
    ("given", "gpu", "used"),
    [
        ("cuda", True, "cuda,cpu"),
        ("cuda", False, "cuda"),  # an error, not the CPU alone
        ("tpu", False, "tpu,cpu"),
        ("cpu", True, "cpu"),
        ("cuda,cpu", True, "cuda,cpu"),
        ("", True, ""),
    ],
)
def test_jax_may_count_operations_on_the_cpu(monkeypatch, given, gpu, used):
    """It starts only the platforms that are listed, and a sweep would fail after its first run."""
    monkeypatch.setattr(os.path, "exists", lambda path: gpu)
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("JAX_PLATFORMS", given)
    extras.prepare_program()
    assert os.environ["JAX_PLATFORMS"] == used


def test_ctrl_c_and_errors_of_files_end_in_one_line(tmp_path):
    """Also where the program itself looks for neither."""
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "vivit_jax.data.moving_digits", f"--out={tmp_path}/file/x"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: [Errno 20] Not a directory: '{tmp_path}/file/x/videos'\n")
    interrupt = "import sys; sys.argv[0] = '-m'; import vivit_jax; raise KeyboardInterrupt"
    ended = subprocess.run([sys.executable, "-c", interrupt], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")
