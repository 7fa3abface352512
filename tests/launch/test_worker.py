"""launch/tpu/worker.sh with real processes, and unpacking of the copied code."""

import os
import shlex
import subprocess
import time

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def worker(tmp_path):
    def call(*arguments, home=None):
        environment = {**os.environ, "HOME": str(home or tmp_path), "VIVIT_JAX_STOP_SECONDS": "1"}
        return subprocess.run(
            ["bash", "launch/tpu/worker.sh", *arguments],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    yield call
    call("stop")


def ended(worker, state, seconds=10):
    """Waits for a state of the job."""
    until = time.monotonic() + seconds
    while worker("state").stdout.strip() != state:
        assert time.monotonic() < until, worker("state").stdout
        time.sleep(0.1)
    return True


def test_start_keeps_output_and_exit_code(worker, tmp_path):
    assert worker("state").stdout == "job: none\n"
    assert worker("start", "bash", "-c", 'echo "a b: $1"; exit 3', "x", "c  d").stdout == "job: started\n"
    assert ended(worker, "job: exit 3")
    log = (tmp_path / "vivit_jax_job" / "log").read_text()
    assert "a b: c  d\n" in log  # arguments arrive unchanged
    assert "bash -c" in log  # the command precedes its output


def test_one_command_at_a_time_and_stop_terminates_then_kills(worker, tmp_path):
    saved = tmp_path / "saved"
    worker("start", "bash", "-c", f"trap 'touch {saved}; exit 75' TERM; echo up; while :; do sleep 0.05; done")
    assert ended(worker, "job: running")
    rejected = worker("start", "true")
    assert rejected.returncode == 3
    assert "is already running" in rejected.stderr
    while "up" not in (tmp_path / "vivit_jax_job" / "log").read_text().split():
        time.sleep(0.05)
    worker("stop")
    assert saved.exists()
    assert ended(worker, "job: exit 75")
    worker("start", "bash", "-c", "trap '' TERM; while :; do sleep 0.05; done")
    time.sleep(0.3)
    worker("stop")
    assert ended(worker, "job: exit 137")


def test_a_command_without_exit_code_counts_as_killed(worker, tmp_path):
    job = tmp_path / "vivit_jax_job"
    job.mkdir()
    (job / "pid").write_text("999999999\n")  # as after a restart of the machine
    assert worker("state").stdout == "job: exit 137\n"


def test_push_deletes_removed_files_and_keeps_run_output(tmp_path):
    shown = subprocess.run(
        ["launch/tpu_vm.sh", "push", "--name=k", "--zone=us-central2-b", "--dry-run"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    unpack = shlex.split(shown.stdout.splitlines()[-1])[-1].removeprefix("--command=")
    code = tmp_path / "code"
    for number, files in enumerate((["a.py", "b c.py"], ["a.py"])):
        code.mkdir(exist_ok=True)
        for name in files:
            (code / name).write_text(f"{number}")
        subprocess.run(["tar", "-czf", tmp_path / "vivit_jax.tar.gz", "-C", code, *files], check=True)
        subprocess.run(["bash", "-c", unpack], cwd=tmp_path, check=True)
        (tmp_path / "vivit_jax" / "written_by_a_run").touch()
    assert sorted(p.name for p in (tmp_path / "vivit_jax").iterdir()) == ["a.py", "written_by_a_run"]
    assert (tmp_path / "vivit_jax" / "a.py").read_text() == "1"
