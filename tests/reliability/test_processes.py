"""Processes agree on what they restore; a stalled one ends all."""

import json
import socket
import subprocess
import sys

import pytest

from tests.checkpoint.test_manager import abstract, saved
from tests.conftest import REPOSITORY
from vivit_jax import distributed
from vivit_jax.checkpoint import CheckpointError, UnavailableError, together


def failed(kind, text):
    """The outcome of a process whose error is so bad, 0 the worst."""
    return json.dumps([kind, text])


def test_all_processes_raise_the_worst_error(monkeypatch):
    def damaged():
        raise CheckpointError("damaged here")

    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, failed(0, "does not answer")])
    for read in (damaged, list):
        with pytest.raises(UnavailableError, match="process 1: does not answer"):
            together(read)
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, failed(2, "damaged there")])
    with pytest.raises(CheckpointError, match="process 1: damaged there") as raised:
        together(list)
    assert type(raised.value) is CheckpointError
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, failed(3, "steps [1]")])
    with pytest.raises(UnavailableError, match=r"process 0 steps \[1, 2\], process 1 steps \[1\]"):
        together(lambda: [1, 2], lambda steps: f"steps {steps}")
    assert together(lambda: [1], lambda steps: f"steps {steps}") == [1]


def test_a_step_that_another_process_cannot_read_is_set_aside(tmp_path, monkeypatch):
    outcomes = []

    def gather(mine):
        outcomes.append(mine)
        return [mine, failed(2, "cannot be read") if len(outcomes) == 3 else mine]  # 1: the steps, 2: metadata

    with saved(tmp_path / "c", [1, 2], keep_latest=2) as checkpoints:
        monkeypatch.setattr(distributed, "gather", gather)
        assert int(checkpoints.restore(abstract())[0].step) == 1
        assert (checkpoints.steps(), checkpoints.quarantined()) == ([1], ["c-2"])


def test_a_renamed_step_is_refused(tmp_path):
    saved(tmp_path / "c", [1, 2], keep_latest=2).close()
    (tmp_path / "c" / "2").rename(tmp_path / "c" / "60")
    with saved(tmp_path / "c", []) as checkpoints:
        for read in (lambda: checkpoints.restore(abstract()), checkpoints.latest_metadata):
            with pytest.raises(CheckpointError, match="c/60 holds step 2, its folder was renamed"):
                read()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "60"]


def test_a_stalled_phase_ends_the_process_with_its_stacks():
    program = """if True:
        import time
        from vivit_jax import distributed
        with distributed.watching(0):
            distributed.beat("step", 1)
        with distributed.watching(0.5):
            for step in range(4):
                distributed.beat("step", step)
                time.sleep(0.2)
            distributed.beat("compile")  # which may take longer
            time.sleep(0.8)
        time.sleep(1.0)
        print("alive", flush=True)
        def stalled_collective():
            time.sleep(60)
        with distributed.watching(0.2):
            distributed.beat("save", 7)
            stalled_collective()
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "save 7 took more than 0.4 s (config.step_timeout_seconds=0.2)" in done.stderr
    assert "in stalled_collective" in done.stderr


PROGRAM = """
import sys, threading
from pathlib import Path
from unittest import mock

process, port, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", 2, process, heartbeat_timeout_seconds=30)
from vivit_jax import checkpoint, distributed, sharding
from vivit_jax.checkpoint import manager
from vivit_jax.distributed import watchdog
from vivit_jax.train_step import TrainState

mesh, manager._RETRY_SECONDS = sharding.make_mesh({"fsdp": 2}), ()
optimizer, read = optax.adamw(1e-3), ocp.PyTreeCheckpointHandler.restore


def make(step):
    return TrainState.create({"kernel": jnp.full((800, 4), step, jnp.float32)}, optimizer).replace(step=step)


specs = sharding.state_sharding(mesh, jax.eval_shape(make, jnp.int32(0)))
abstract = sharding.abstract_like(jax.eval_shape(make, jnp.int32(0)), specs)
state = jax.jit(make, out_shardings=specs)


def reading(error, step):
    '''Prints what is restored where process 1 alone cannot read a step.'''
    def restore(self, path, **options):
        if (process, path.parent.name) == (1, step):
            raise error
        found = read(self, path, **options)
        # This step is damaged in the memory of process 1 alone: its copy of a replicated number.
        wrong = (process, path.parent.name) == (1, "3")
        return found.replace(step=state(jnp.int32(4)).step) if wrong else found

    try:
        with mock.patch.object(ocp.PyTreeCheckpointHandler, "restore", restore):
            with jax.set_mesh(mesh), checkpoint.Checkpoints(root) as checkpoints:
                print("FOUND", int(checkpoints.restore(abstract)[0].step), checkpoints.steps(), flush=True)
    except checkpoint.CheckpointError as error:
        print("FOUND", type(error).__name__, "/4 cannot be read: " in str(error), flush=True)


with jax.set_mesh(mesh), checkpoint.Checkpoints(root, keep_latest=9) as checkpoints:
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(jnp.int32(step)), {})
    checkpoints.wait()
reading(OSError(5, "Input/output error"), "4")
reading(ValueError("not an array"), "4")
watchdog._POLL, watchdog._GRACE = 0.5, 3 + 2 * process  # process 1 ends while process 0 still waits
with distributed.watching(1.5):
    for step in (1, 2, 3):
        distributed.beat("batch", step)
        if (process, step) == (1, 3):
            threading.Event().wait(100)
        distributed.beat("step", step)
        distributed.gather("")
"""


@pytest.mark.slow
def test_two_processes_restore_the_same_step_and_end_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, "-c", PROGRAM, str(i), port, tmp_path / "run" / "checkpoints"] for i in range(2)]
    children = [subprocess.Popen(command, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True) for command in commands]
    try:
        outputs = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (out, err) in zip(children, outputs, strict=True):
        found = [line for line in out.splitlines() if line.startswith("FOUND")]
        # An outage moves nothing. Step 4 cannot be read by one process, and of step 3 one has other numbers.
        assert found == ["FOUND UnavailableError True", "FOUND 2 [1, 2]"], err
        assert child.returncode == 1
        assert "Thread" in err
        assert "behind the others: process 1" in err
        assert ", batch 3)" in err
    assert sorted(path.name for path in (tmp_path / "run" / "damaged").iterdir()) == ["checkpoints-3", "checkpoints-4"]
