"""Start of a run of several processes: `jax.distributed.initialize` with clear errors and the right GPUs.

On TPU slices, under Slurm and under Open MPI jax detects the other processes; elsewhere the flags of `vivit_jax.main`
name them, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A single machine needs nothing.
"""

import dataclasses
import glob
import importlib.util
import logging as standard_logging
import os
import re
from collections.abc import Mapping

import jax
from absl import logging

from vivit_jax.utils import devices

# jax waits 100 and 300 s by default; with these, the survivors of a failed process end within a minute. Not shorter:
# a live migration or a swapping disk may stall a healthy machine for several seconds.
HEARTBEAT_SECONDS = 30
SHUTDOWN_SECONDS = 60

_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class DistributedError(ValueError):
    """The processes cannot find each other: incomplete or contradictory settings, or no answer."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Arguments of `jax.distributed.initialize`; None for what jax detects."""

    coordinator_address: str | None = None  # 'host:port' of process 0
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None  # the GPUs of this process, as indices into the visible ones
    launcher: str = "given"  # by flags or variables; else 'slurm', 'ompi' or 'tpu'


def initialise(
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> bool:
    """Connects the processes of a run and logs its devices; call it before using a device.

    Returns whether `jax.distributed` is initialised. Mode 'auto': if several processes are given or detected; 'off':
    never. Give all of 'host:port' of process 0, number of processes and index of this one, from 0; or none where the
    launcher is detected. DistributedError where they are incomplete or contradict each other, or a process is missing.
    """
    flags = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    start = plan(os.environ, mode, **flags)
    connected = start is not None and _connect(start)
    if jax.process_index() != 0:  # warnings only, with the number of the process; `--verbosity=1` shows all
        form = f"%(asctime)s process {jax.process_index()}: %(message)s"
        logging.get_absl_handler().setFormatter(standard_logging.Formatter(form, "%H:%M:%S"))
        if logging.get_verbosity() <= logging.INFO:
            logging.set_verbosity(logging.WARNING)
    devices.announce()
    if connected:
        logging.info("Process %d of %d (%s).", jax.process_index(), jax.process_count(), start.launcher)
    return connected


def _connect(start: Start) -> bool:
    """Starts `jax.distributed`; returns False where there is nothing to connect to."""
    timeouts = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    where = start.coordinator_address, start.num_processes, start.process_id, start.local_device_ids
    try:
        jax.distributed.initialize(*where, **timeouts)
    except RuntimeError as error:
        raise DistributedError(
            f"process {start.process_id} of {start.num_processes} did not join the others at "
            f"{start.coordinator_address}: {error}. Start all processes within 300 s of each other, let the port "
            "through the firewall, and unset http_proxy if there is one"
        ) from error
    except ValueError as error:
        if start != Start(launcher="tpu"):
            raise DistributedError(f"jax.distributed could not be started ({start.launcher}): {error}") from error
        return False  # libtpu is installed, but this is no TPU: jax detected no cluster
    return True


def plan(environment: Mapping[str, str], mode: str = "auto", **flags: str | int | None) -> Start | None:
    """Returns how `initialise` starts `jax.distributed`, from its arguments and the environment; None: not at all."""
    flags = {name: value for name, value in flags.items() if value is not None}
    if mode == "off":
        if flags:
            raise DistributedError(f"--distributed=off, but --{next(iter(flags))} is given: leave one of them out")
        return None
    given = {name: environment[v] for name, v in _VARIABLES.items() if environment.get(v)} | flags
    for name in given.keys() & {"num_processes", "process_id"}:
        try:
            given[name] = int(given[name])
        except ValueError:
            raise DistributedError(f"{name}={given[name]!r} (from {_VARIABLES[name]}) must be a whole number") from None
    launcher = _detect_launcher(environment)
    if launcher == "ompi":
        given.setdefault("num_processes", int(environment["OMPI_COMM_WORLD_SIZE"]))
        given.setdefault("process_id", int(environment["OMPI_COMM_WORLD_RANK"]))
        if "OMPI_MCA_orte_hnp_uri" not in environment and given["num_processes"] > 1:
            _check(given, "Open MPI 5 and newer do not publish the address of process 0")
    if not given:
        if launcher == "slurm" and int(environment["SLURM_NTASKS"]) == 1:
            return None
        if launcher is not None:
            return Start(local_device_ids=_local_devices(environment, launcher), launcher=launcher)
        if int(environment.get("SLURM_NTASKS", 1)) > 1:
            logging.warning(
                "Slurm gave this job %s tasks, but this process was not started by srun and runs alone; "
                "start it as launch/slurm.sbatch does.",
                environment["SLURM_NTASKS"],
            )
        return None
    if launcher == "ompi" and given["num_processes"] == 1 and not flags:
        return None
    _check(given, None if launcher else "no Slurm, Open MPI or TPU slice was detected that would supply the rest")
    return Start(**given, local_device_ids=_local_devices(environment, launcher), launcher=launcher or "given")


def _check(given: Mapping[str, object], needs_all: str | None) -> None:
    """Raises DistributedError for values out of range and, with `needs_all` as the reason, for missing ones."""
    missing = [name for name in _VARIABLES if name not in given]
    if needs_all is not None and missing:
        raise DistributedError(
            f"{' and '.join(sorted(given))} given without {' and '.join(missing)}, and {needs_all}: give "
            + ", ".join(f"--{name} (or {_VARIABLES[name]})" for name in missing)
        )
    address, count, process = (given.get(name) for name in _VARIABLES)
    if address is not None and not re.fullmatch(r".+:\d{1,5}", str(address)):
        raise DistributedError(f"coordinator_address={address!r} must be host:port, such as 10.0.0.2:8476")
    if count is not None and count < 1:
        raise DistributedError(f"num_processes={count} must be at least 1")
    if process is not None and (process < 0 or (count is not None and process >= count)):
        raise DistributedError(f"process_id={process} must lie in [0, num_processes={count})")


def _detect_launcher(environment: Mapping[str, str]) -> str | None:
    """Returns the launcher that started this process, among those that jax can query, or None."""
    if all(name in environment for name in _SLURM_STEP):
        return "slurm"
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "ompi"
    if importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS") != "cpu":
        return "tpu"
    return None


def _local_devices(environment: Mapping[str, str], launcher: str | None) -> tuple[int, ...] | None:
    """Returns the GPUs of this process, as indices into the visible ones; None: jax's choice.

    Under Slurm and Open MPI jax gives each process one GPU, numbered by its rank on the machine. With one process per
    machine seven of eight are idle; where the launcher bound each process to its own GPU, that index is not visible.
    """
    if launcher not in ("slurm", "ompi") or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None  # jax reads that itself
    if launcher == "slurm":
        rank = int(environment["SLURM_LOCALID"])
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
        parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)  # of each node: '4(x2),1' is 4, 4, 1
        sizes = [int(size) for size, times in parts for _ in range(int(times or 1))]
        size = sizes[min(int(environment.get("SLURM_NODEID", 0)), len(sizes) - 1)]
    else:
        rank = int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
        size = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    total = int(on_node) if on_node.isdigit() else len(glob.glob("/dev/nvidia[0-9]*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    seen = len([x for x in visible.split(",") if x.strip()]) if visible is not None else total
    if seen == 0:
        return None
    if size == 1 or seen < size or seen * size <= total:
        return tuple(range(seen))  # bound by the launcher, or alone on the machine: all visible ones
    each, rest = divmod(seen, size)
    if rest:
        advice = f"start a number of processes that divides {seen}, or set JAX_LOCAL_DEVICE_IDS for each"
        raise DistributedError(f"{size} processes on this machine cannot share {seen} GPUs evenly: {advice}")
    return tuple(range(rank * each, (rank + 1) * each))
