"""launch/tpu_vm.sh with a fake gcloud that answers like the real one."""

import re
import shlex
import tarfile

import pytest

SCRIPT = "launch/tpu_vm.sh"
WHERE = ("--name=k400", "--zone=us-central2-b")
SPOT = (*WHERE, "--type=v5e-16", "--spot")
JOB = ("--", "--config=configs/k400_vivit_l.py", "--workdir=gs://b/k400")

QUEUED = "queued-resources describe .*state.state"
NODE = "tpu-vm describe"
STATE = "worker.sh state"
# Errors as gcloud prints them (the first: github.com/hashicorp/terraform-provider-google/issues/21243).
NO_CAPACITY = (
    1,
    'ERROR: {"code": 8, "message": "There is no more capacity in the zone \\"us-central2-b\\"; try another"}',
)
QUOTA = (
    1,
    "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has been exceeded.",
)
PERMISSION = (
    1,
    "ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p/locations/x'",
)
NOT_FOUND = (1, "ERROR: NOT_FOUND: Resource 'projects/p/locations/us-central2-b/queuedResources/k400' was not found")
EXISTS = (1, "ERROR: ALREADY_EXISTS: Resource 'queuedResources/k400' already exists")


@pytest.fixture
def gcloud(fake):
    return fake("gcloud")


def verbs(calls):
    """Returns a word for each call."""
    words = {
        "queued-resources create": "create",
        "tpu-vm create": "create now",
        "queued-resources delete": "delete",
        "tpu-vm delete": "delete now",
        "queued-resources describe": "?",
        "tpu-vm describe": "?",
        "tpu-vm scp": "copy",
        "worker.sh setup": "setup",
        "worker.sh start": "start",
        "worker.sh stop": "stop",
        "worker.sh state": "state",
        "tar -xzf": "unpack",
        "--command=true": "?",
        "tail -n": "log",
        "storage rsync": "fetch",
    }
    names = [next((v for w, v in words.items() if w in " ".join(call)), " ".join(call)) for call in calls]
    return [word for word in names if word != "?"]


def test_up_runs_exactly_these_commands(gcloud):
    gcloud.answer(QUEUED, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    gcloud.answer(NODE, "READY")
    done = gcloud.run(SCRIPT, "up", *SPOT, "--project=p", *JOB, "--config.model.num_frames=8")
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud.calls) == ["create", "copy", "unpack", "setup", "start"]
    where, tpus = ["--zone=us-central2-b", "--project=p"], ["gcloud", "compute", "tpus"]
    assert gcloud.calls[0] == [
        *tpus, "queued-resources", "create", "k400", *where, "--node-id=k400", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    ]  # fmt: skip
    assert gcloud.calls[1] == [*tpus, "queued-resources", "describe", "k400", *where, "--format=value(state.state)"]
    start = gcloud.calls[-1]
    assert start[:-1] == [*tpus, "tpu-vm", "ssh", "k400", *where, "--worker=all", "--quiet"]
    command = shlex.split(start[-1].removeprefix("--command="))
    assert command[:3] == ["bash", "vivit_jax/launch/tpu/worker.sh", "start"]
    assert command[3:] == ["python", "-m", "vivit_jax.main", *JOB[1:], "--config.model.num_frames=8"]
    assert "--worker=all" in next(call for call in gcloud.calls if "scp" in call)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--type=v3-32"], "queued-resources create k400 .*=v3-32 --runtime-version=tpu-ubuntu2204-base$"),
        (["--type=v4-8", "--reserved"], "=v4-8 --runtime-version=tpu-ubuntu2204-base --reserved$"),
        (["--type=v5p-8", "--runtime=mine"], "=v5p-8 --runtime-version=mine$"),
        (["--type=v6e-8", "--spot", "--no-queue"], "tpu-vm create k400 .*=v6e-8 --version=v2-alpha-tpuv6e --spot$"),
        (
            ["--type=v5p-8", "--track=alpha", "--create-option=--reservation=r"],
            "^gcloud alpha .* --reservation=r$",
        ),
    ],
)
def test_create_command_of_each_kind_of_request(gcloud, options, asked):
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    done = gcloud.run(SCRIPT, "create", *WHERE, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(asked, " ".join(gcloud.calls[0])), gcloud.calls[0]


def test_dry_run_prints_the_commands_of_a_real_run(gcloud):
    dry = gcloud.run(SCRIPT, "up", *SPOT, "--dry-run", *JOB, "--config.input.scale_jitter=(0.9, 1.3)")
    assert dry.returncode == 0, dry.stderr
    assert gcloud.calls == []
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.run(SCRIPT, "up", *SPOT, *JOB, "--config.input.scale_jitter=(0.9, 1.3)")
    printed = [shlex.split(line) for line in dry.stdout.splitlines() if line.startswith("gcloud")]
    asked = [["vivit_jax.tar.gz" if w.endswith("/vivit_jax.tar.gz") else w for w in call] for call in gcloud.calls]
    assert printed == asked


def test_push_archives_the_files_that_git_lists(gcloud, tmp_path):
    # The fake gcloud copies nothing, so the test runs the archive command that the dry run prints.
    dry = gcloud.run(SCRIPT, "push", *WHERE, "--dry-run")
    pack = shlex.split(dry.stdout.splitlines()[0])
    pack[-1] = str(tmp_path / "code.tar.gz")
    assert gcloud.run(*pack).returncode == 0
    with tarfile.open(tmp_path / "code.tar.gz") as archive:
        names = archive.getnames()
    assert {"setup.py", "vivit_jax/main.py", "launch/tpu/worker.sh"} <= set(names)
    assert not [n for n in names if n.startswith((".git/", "data/", "runs/")) or "__pycache__" in n]


def test_watch_recreates_a_preempted_tpu_and_resumes(gcloud):
    gcloud.answer(QUEUED, NOT_FOUND, "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(
        STATE, "job: none", "job: running\njob: running", "job: none", "job: running", "job: exit 0\njob: exit 0"
    )
    done = gcloud.run(SCRIPT, "watch", *SPOT, *JOB)
    assert done.returncode == 0, done.stderr
    once = ["copy", "unpack", "setup", "start"]
    assert verbs(gcloud.calls) == [
        "create", "state", *once, "state", "delete", "create", "state", *once, "state", "state",
    ]  # fmt: skip
    starts = [call for call in gcloud.calls if "worker.sh start" in call[-1]]
    assert starts[0] == starts[1]
    assert "preempted; creating it again" in done.stderr


def test_watch_limits_the_restarts_of_a_failed_run(gcloud):
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(STATE, "job: none", "job: running\njob: exit 1")
    gcloud.answer("tail -n", "FloatingPointError: the loss is nan")
    done = gcloud.run(SCRIPT, "watch", *SPOT, "--restarts=2", *JOB)
    assert done.returncode == 1
    assert verbs(gcloud.calls).count("start") == 3
    assert verbs(gcloud.calls).count("delete") == 0
    assert "the loss is nan" in done.stdout
    assert "has failed 3 times (exit code 1)" in done.stderr


def test_watch_does_not_count_preemptions_as_failures(gcloud):
    gcloud.answer(QUEUED, "ACTIVE", "SUSPENDING", "SUSPENDING", "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(STATE, "job: exit 1", "job: none", "job: exit 0")
    done = gcloud.run(SCRIPT, "watch", *SPOT, "--restarts=0", *JOB)
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud.calls)[:3] == ["state", "delete", "create"]


def test_watch_goes_on_where_a_preemption_ends_the_connection(gcloud):
    """Exit code 75: the run has saved, and the VM is about to go; ssh fails before the state shows it."""
    gcloud.answer(QUEUED, "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(STATE, "job: exit 75", "job: none", "job: exit 0")
    gcloud.answer("worker.sh stop", (255, "", "ssh: connection reset"), "")
    gcloud.answer("worker.sh start", (255, "", "ssh: connection reset"), "")
    done = gcloud.run(SCRIPT, "watch", *SPOT, *JOB)
    assert done.returncode == 0, done.stderr
    assert "preempted; creating it again" in done.stderr


def test_watch_does_not_restart_after_wrong_usage(gcloud):
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(STATE, "job: exit 2")
    done = gcloud.run(SCRIPT, "watch", *SPOT, *JOB)
    assert done.returncode == 1
    assert "start" not in verbs(gcloud.calls)
    assert "wrong usage" in done.stderr


def test_create_waits_for_capacity_up_to_patience(gcloud):
    gcloud.answer("tpu-vm create", NO_CAPACITY, NO_CAPACITY, "")
    gcloud.answer(NODE, "READY")
    done = gcloud.run(SCRIPT, "create", *SPOT, "--no-queue")
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud.calls) == ["create now"] * 3
    gcloud.answer("never", "")
    gcloud._answers[0] = ("tpu-vm create", [(1, "", NO_CAPACITY[1])])
    done = gcloud.run(SCRIPT, "create", *SPOT, "--no-queue", "--poll=60", "--patience=180")
    assert done.returncode == 1
    assert verbs(gcloud.calls) == ["create now"] * 7  # after 0, 60, 120 and 180 s
    assert "no TPU after 180 s" in done.stderr
    assert "try another zone or a smaller slice" in done.stderr


def test_failed_request_is_repeated_for_capacity_not_for_quota(gcloud):
    gcloud.answer("failedData", "There is no more capacity in the zone")
    gcloud.answer(QUEUED, "FAILED", "ACTIVE")
    gcloud.answer(NODE, "READY")
    done = gcloud.run(SCRIPT, "create", *SPOT)
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud.calls) == ["create", "delete", "create"]
    gcloud._answers[:2] = [("failedData", [(0, QUOTA[1], "")]), (QUEUED, [(0, "FAILED", "")])]
    done = gcloud.run(SCRIPT, "create", *SPOT)
    assert done.returncode == 1
    assert verbs(gcloud.calls)[3:] == ["create"]
    assert "your quota for v5e-16 (spot) in us-central2-b" in done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (QUOTA, "waiting does not help. Delete unused TPUs, or request more"),
        (PERMISSION, "roles/tpu.admin"),
        ((1, "ERROR: (gcloud) You do not currently have an active account selected."), "gcloud auth login"),
        ((1, "ERROR: Cloud TPU API has not been used in project 1 before or it is disabled"), "services enable tpu"),
        ((1, "ERROR: INVALID_ARGUMENT: accelerator v5litepod-16 is not supported"), "accelerator-types list"),
        ((1, "ERROR: something else"), "gcloud failed, see its message above"),
    ],
)
def test_permanent_errors_end_at_once_with_advice(gcloud, error, message):
    gcloud.answer("queued-resources create", error)
    gcloud.answer(QUEUED, NOT_FOUND)
    done = gcloud.run(SCRIPT, "watch", *SPOT, *JOB)
    assert done.returncode == 1
    assert error[1] in done.stderr  # gcloud's own message is shown
    assert message in done.stderr
    assert verbs(gcloud.calls).count("create") == 1


def test_full_reservation_ends_and_temporary_error_is_retried(gcloud):
    reserved = (*WHERE, "--type=v4-8", "--reserved")
    gcloud.answer("create", (1, "ERROR: Insufficient reserved capacity. Contact customer support"))
    done = gcloud.run(SCRIPT, "create", *reserved)
    assert done.returncode == 1
    assert "the reservation has no room" in done.stderr
    gcloud._answers[:] = [("create", [(1, "", "ERROR: UNAVAILABLE: try again"), (0, "", "")])]
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    assert gcloud.run(SCRIPT, "create", *reserved).returncode == 0


def test_create_uses_and_delete_ignores_existing_state(gcloud):
    gcloud.answer("queued-resources create", EXISTS)
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    assert gcloud.run(SCRIPT, "create", *SPOT).returncode == 0
    gcloud.answer("delete", NOT_FOUND)
    assert gcloud.run(SCRIPT, "delete", *WHERE).returncode == 0
    assert gcloud.calls[-1][-3:] == ["--zone=us-central2-b", "--force", "--quiet"]


def test_ssh_to_a_new_vm_is_retried_a_limited_time(gcloud):
    gcloud.answer("worker.sh setup", (255, "ssh: connect to host 10.0.0.2 port 22: Connection refused"), "")
    assert gcloud.run(SCRIPT, "setup", *WHERE).returncode == 0
    assert verbs(gcloud.calls) == ["setup", "setup"]
    gcloud._answers[:] = [("worker.sh setup", [(255, "", "refused")])]
    done = gcloud.run(SCRIPT, "setup", *WHERE)
    assert done.returncode == 1
    assert "firewall" in done.stderr


def test_status_tail_stop_and_fetch(gcloud):
    gcloud.answer(QUEUED, "ACTIVE")
    gcloud.answer(NODE, "READY")
    gcloud.answer(STATE, "job: running\njob: exit 137")
    assert gcloud.run(SCRIPT, "status", *WHERE).stdout.splitlines() == ["k400 in us-central2-b: ready", "command: 137"]
    gcloud.run(SCRIPT, "tail", *WHERE, "--worker=3", "--lines=7")
    assert gcloud.calls[-1][-3:] == ["--worker=3", "--quiet", "--command=tail -n 7 -F vivit_jax_job/log"]
    gcloud.run(SCRIPT, "stop", *WHERE)
    assert gcloud.calls[-1][-1] == "--command=bash vivit_jax/launch/tpu/worker.sh stop"
    to = gcloud.folder / "here"
    gcloud.run(SCRIPT, "fetch", *WHERE, "--workdir=gs://b/k400", f"--to={to}")
    assert gcloud.calls[-1] == ["gcloud", "storage", "rsync", "gs://b/k400", str(to), "--recursive"]
    assert to.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--name=K400", "--zone=us-central2-b", "--type=v4-8"], "--name='K400' must be 1 to 63 lower-case"),
        (["create", "--name=k", "--zone=us-central2", "--type=v4-8"], "must be a zone such as us-central2-b"),
        (["create", "--name=k", "--zone=us-south1-ai1b"], "create needs --type"),
        (["create", *WHERE], "create needs --type"),
        (["create", *WHERE, "--type=v3-16"], "there is no slice of 16; choose one of 8 32 64"),
        (["create", *WHERE, "--type=v4-12"], "must be a multiple of 8"),
        (["create", *WHERE, "--type=v9-8"], "--type=v9-8 is unknown"),
        (["create", *WHERE, "--type=tpu7x-8"], "GKE only"),
        (["create", *WHERE, "--type=v4-8", "--spot", "--reserved"], "exclude each other"),
        (["run", *WHERE], "run needs the command to run after --"),
        (
            ["run", *WHERE, "--", "--config=c.py", "--workdir=runs/x"],
            "lost with the VM: give --workdir=gs://BUCKET/RUN",
        ),
        (["fetch", *WHERE, "--workdir=runs/x"], "fetch needs --workdir=gs://"),
        (["tail", *WHERE, "--worker=all"], "--worker=all must be a whole number"),
        (["create", "--name", "k"], "write --name=VALUE"),
        (["begin", *WHERE], "unknown command begin"),
        (["run", *WHERE, "--config=c.py"], "the command to run goes after --"),
    ],
)
def test_wrong_values_are_rejected_before_any_call(gcloud, arguments, message):
    done = gcloud.run(SCRIPT, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert gcloud.calls == []
