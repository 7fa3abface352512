"""Start-up from flags and launcher variables; two real processes that connect and end together."""

import re
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.videos import numbered_video
from vivit_jax.distributed import DistributedError, initialize
from vivit_jax.distributed.initialize import Start, plan

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}


@pytest.fixture(autouse=True)
def no_accelerators(monkeypatch):
    """The plans do not depend on what this machine has."""
    monkeypatch.setattr(initialize.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(initialize.glob, "glob", lambda pattern: [])


def test_single_machine_starts_nothing():
    assert plan({}) is None
    assert plan({}, "off") is None


def test_flags_override_variables():
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    assert plan(variables) == Start("a:1", 4, 0)
    assert plan(variables, process_id=3) == Start("a:1", 4, 3)
    assert plan(variables, "off") is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"coordinator_address": "a:1"}, "without num_processes and process_id.*--num_processes .or JAX_NUM_PROCESSES"),
        ({"num_processes": 2, "process_id": 0}, "without coordinator_address"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "'a' must be host:port"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, r"process_id=2 must lie in \[0, num"),
        ({"coordinator_address": "a:1", "num_processes": 0, "process_id": 0}, "num_processes=0 must be at least 1"),
        ({"mode": "off", "process_id": 1}, "--distributed=off, but --process_id is given"),
    ],
)
def test_incomplete_settings_are_refused(given, says):
    with pytest.raises(DistributedError, match=says):
        plan({}, **given)


def test_variable_that_is_not_a_number_is_refused():
    with pytest.raises(DistributedError, match=r"process_id='first' .from JAX_PROCESS_ID. must be a whole number"):
        plan({"JAX_PROCESS_ID": "first"})


@pytest.mark.parametrize(
    ("change", "gpus"),
    [
        ({}, tuple(range(8))),  # one process a machine: jax alone would take GPU 0
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}, (5,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_LOCALID": "3"}, (6, 7)),
        # Bound to one each: jax alone would ask for the sixth of one.
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": "5"}, (0,)),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, (0, 1)),
        ({"JAX_LOCAL_DEVICE_IDS": "1"}, None),
        ({"SLURM_GPUS_ON_NODE": "", "CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_slurm_gpus_of_each_process(change, gpus):
    assert plan(SLURM | change) == Start(local_device_ids=gpus, launcher="slurm")


@pytest.mark.parametrize(
    ("size", "visible", "gpus"),
    [
        (4, None, (4, 5)),
        (4, "0,1,2,3", (2,)),  # the same four for all, of eight
        (4, "4,5", (0, 1)),  # bound to two each
        (4, "2", (0,)),
        (8, "2", (0,)),
        (1, "0,1,2,3", (0, 1, 2, 3)),
    ],
)
def test_open_mpi_gpus_of_each_process(monkeypatch, size, visible, gpus):
    monkeypatch.setattr(initialize.glob, "glob", lambda pattern: [f"/dev/nvidia{i}" for i in range(8)])
    rank = min(2, size - 1)
    world = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
    world |= {"OMPI_COMM_WORLD_LOCAL_SIZE": str(size)} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    assert plan(world, coordinator_address="h:1").local_device_ids == gpus


def test_gpus_that_do_not_divide_are_refused():
    with pytest.raises(DistributedError, match="3 processes on this machine cannot share 8 GPUs evenly"):
        plan(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"})


def test_slurm_with_one_task_or_without_srun_is_single_process():
    assert plan(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    without_srun = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    assert plan(without_srun) is None


def test_open_mpi_5_needs_the_coordinator_address():
    world = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
    old = plan(world | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"})
    assert old == Start(None, 4, 2, launcher="ompi")
    with pytest.raises(DistributedError, match=r"do not publish the address of process 0.*--coordinator_address"):
        plan(world)
    assert plan(world, coordinator_address="h:1") == Start("h:1", 4, 2, launcher="ompi")
    assert plan({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) is None


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def two_processes(body, timeout=120):
    """Runs `body` in two processes of two virtual devices each: [(exit code, stdout, stderr, seconds)] of each."""
    program = textwrap.dedent(
        """
        import os, sys
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        os.environ["JAX_PLATFORMS"] = "cpu"
        from absl import logging
        logging.use_absl_handler()
        logging.set_verbosity(logging.INFO)
        import jax, jax.numpy as jnp
        from vivit_jax import distributed
        me = int(sys.argv[1])
        """
    ) + textwrap.dedent(body).replace("PORT", str(free_port()))
    began = time.monotonic()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(i)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [child.communicate(timeout=timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    seconds = time.monotonic() - began
    return [(child.returncode, *texts, seconds) for child, texts in zip(children, outputs, strict=True)]


def test_program_connects_before_it_reads_data_and_weights(tmp_path):
    """Reading weights initialises the devices, after which jax refuses to connect."""
    words = [
        "--config=finetune",
        f"--workdir={tmp_path}/run",
        f"--coordinator_address=localhost:{free_port()}",
        "--num_processes=1",
        "--process_id=0",
        f"--config.data.video_dir={tmp_path}/no",
    ]
    command = [sys.executable, "-m", "vivit_jax.main", *words]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert re.search(r"Process 0 of 1 \(given\).*data is missing", ended.stderr, re.S), ended.stderr


def test_two_processes_compute_together_and_only_primary_logs():
    ended = two_processes(
        """
        import time
        with distributed.synchronized_exit():
            assert distributed.initialise("auto", "localhost:PORT", 2, me)
            from jax.experimental import multihost_utils
            both = multihost_utils.process_allgather(jnp.array([jax.process_index() + 1]))
            if jax.process_index() == 0:
                time.sleep(2)  # the other must wait for what the first still has to do
            logging.info("an ordinary line")
            logging.warning("a warning")
            print("SUM", int(both.sum()), jax.device_count())
        """
    )
    for code, out, err, _ in ended:
        assert code == 0, err[-3000:]
        assert "SUM 3 4" in out
        assert "a warning" in err
    assert "an ordinary line" in ended[0][2]
    assert "an ordinary line" not in ended[1][2]
    assert "process 1: a warning" in ended[1][2]


def test_only_process_0_builds_the_records_on_a_shared_disk(tmp_path):
    for i in range(8):
        (tmp_path / "videos" / f"class_{i % 2}").mkdir(parents=True, exist_ok=True)
        numbered_video(tmp_path / "videos" / f"class_{i % 2}" / f"{i}.mp4", 20)
    ended = two_processes(
        f"""
        with distributed.synchronized_exit():
            assert distributed.initialise("auto", "localhost:PORT", 2, me)
            from vivit_jax import finetuning
            from configs.finetune import get_config
            config = get_config()
            config.data.video_dir, config.data.dir = "{tmp_path}/videos", "{tmp_path}/records"
            if me == 0:
                import time
                time.sleep(2)  # the other would begin first
            print("FRAMES", finetuning.experiment_of(config).model["num_frames"])
        """
    )
    for code, out, err, _ in ended:
        assert code == 0, err[-3000:]
        assert "FRAMES" in out
    built = [": records: 100%" in err for _, _, err, _ in ended]
    assert built == [True, False]


def test_failing_process_ends_the_others_and_prints_why():
    ended = two_processes(
        """
        distributed.initialize.HEARTBEAT_SECONDS = 10
        with distributed.synchronized_exit():
            distributed.initialise("auto", "localhost:PORT", 2, me)
            if me == 1:
                raise OSError("disk full")
            from jax.experimental import multihost_utils
            multihost_utils.sync_global_devices("the other never comes")
        """
    )
    (first, _, _, seconds), (second, _, err, _) = ended
    assert second == 1
    assert "OSError: disk full" in err
    assert first not in (0, None)
    assert seconds < 90  # instead of jax's 300


def test_failing_process_does_not_wait_for_the_others():
    ended = two_processes(
        """
        distributed.initialize.HEARTBEAT_SECONDS = 10
        import time
        with distributed.synchronized_exit():
            distributed.initialise("auto", "localhost:PORT", 2, me)
            try:
                with distributed.exit_deadline(0.5):
                    if me == 1:
                        raise ValueError("a bad batch")
                    time.sleep(600)
            finally:
                time.sleep(600)  # as a checkpoint that all must agree on
        """
    )
    assert ended[1][0] == 1
    assert "ValueError: a bad batch" in ended[1][2]
    assert ended[0][0] not in (0, None)
