"""Several processes as one program: how they find each other, and how they end together.

On a TPU slice, under Slurm and under Open MPI the surroundings say who is who; elsewhere the flags of `vivit_jax.main`
do, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. One machine needs none of it.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import logging as standard_logging
import os
import re
import socket
from collections.abc import Mapping

import jax
from absl import logging

MODES = ("auto", "on", "off")

# jax waits 100 and 300 s by default: with these, the survivors of a failed process end within a minute. They are not
# shorter because a live migration or a disk that swaps may hold a healthy machine up for several seconds.
HEARTBEAT_SECONDS = 30
SHUTDOWN_SECONDS = 60


_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class DistributedError(ValueError):
    """Processes that cannot find each other: something is half given, contradicts itself, or nobody answers."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What `jax.distributed.initialize` is given; None for what jax finds out by itself.

    Attributes:
      coordinator_address: 'host:port' of process 0.
      num_processes, process_id: how many, and which one this is.
      local_device_ids: the GPUs of this process among those that it can see.
      surroundings: 'given', 'slurm', 'ompi', 'tpu' or 'alone'.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None
    surroundings: str = "given"


def initialise(
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> bool:
    """Joins the processes of a run. Call it before anything touches a device.

    Args:
      mode: 'auto': where several processes are given or found; 'on': also for a single process, so that SIGTERM saves
        the step before the run ends; 'off': never.
      coordinator_address: 'host:port' of process 0; all three of these, or none where the surroundings say.
      num_processes: at least 1.
      process_id: in [0, num_processes).

    Returns:
      Whether `jax.distributed` is initialised.

    Raises:
      DistributedError: something is half given or wrong, or the processes did not find each other in 300 s.
    """
    start = plan(os.environ, mode, coordinator_address, num_processes, process_id)
    if start is None:
        return False
    try:
        _connect(start)
    except ValueError as error:
        if start != Start(surroundings="tpu"):
            raise DistributedError(f"jax.distributed could not be started ({start.surroundings}): {error}") from error
        # libtpu is installed, but this is no TPU: jax found no cluster around it.
        if mode == "auto":
            return False
        start = _alone()
        _connect(start)
    _quieten(jax.process_index())
    logging.info("Process %d of %d (%s).", jax.process_index(), jax.process_count(), start.surroundings)
    return True


def _connect(start: Start) -> None:
    try:
        jax.distributed.initialize(
            start.coordinator_address,
            start.num_processes,
            start.process_id,
            local_device_ids=None if start.local_device_ids is None else list(start.local_device_ids),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise DistributedError(
            f"process {start.process_id} of {start.num_processes} did not join the others at "
            f"{start.coordinator_address}: {error}. Start all processes within 300 s of each other, let the port "
            "through the firewall, and unset http_proxy if there is one"
        ) from error


def plan(
    environment: Mapping[str, str],
    mode: str = "auto",
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Start | None:
    """How `initialise` starts `jax.distributed`, from its arguments and the environment's variables; None: not at all.

    Raises:
      DistributedError: as `initialise`.
    """
    if mode not in MODES:
        raise DistributedError(f"distributed={mode!r}; choose one of {', '.join(MODES)}")
    flags = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    flags = {name: value for name, value in flags.items() if value is not None}
    if mode == "off":
        if flags:
            raise DistributedError(f"--distributed=off, but --{next(iter(flags))} is given: leave one of them out")
        return None
    given = {name: environment[v] for name, v in _VARIABLES.items() if environment.get(v)} | flags
    for name in ("num_processes", "process_id"):
        if name in given:
            given[name] = _whole_number(name, given[name])
    around = _surroundings(environment)
    if around == "ompi":
        given.setdefault("num_processes", int(environment["OMPI_COMM_WORLD_SIZE"]))
        given.setdefault("process_id", int(environment["OMPI_COMM_WORLD_RANK"]))
        if "OMPI_MCA_orte_hnp_uri" not in environment and given["num_processes"] > 1:
            _check(given, "Open MPI 5 and newer do not say where process 0 is")
    if not given:
        if around == "slurm" and int(environment["SLURM_NTASKS"]) == 1 and mode == "auto":
            return None
        if around is not None:
            return Start(local_device_ids=_local_devices(environment, around), surroundings=around)
        if int(environment.get("SLURM_NTASKS", 1)) > 1:
            logging.warning(
                "Slurm gave this job %s tasks, but this process was not started by srun and runs alone; "
                "start it as launch/slurm.sbatch does.",
                environment["SLURM_NTASKS"],
            )
        return _alone() if mode == "on" else None
    if around == "ompi" and given["num_processes"] == 1 and mode == "auto" and not flags:
        return None
    if around is None:
        _check(given, "no Slurm, Open MPI or TPU slice was found that would tell the rest")
    _check(given, None)
    return Start(**given, local_device_ids=_local_devices(environment, around), surroundings=around or "given")


def _check(given: Mapping[str, object], needs_all: str | None) -> None:
    """Raises DistributedError for values out of range, and where `needs_all` says why none may be missing."""
    missing = [name for name in _VARIABLES if name not in given]
    if needs_all is not None and missing:
        raise DistributedError(
            f"{' and '.join(sorted(given))} given without {' and '.join(missing)}, and {needs_all}: give "
            + ", ".join(f"--{name} (or {_VARIABLES[name]})" for name in missing)
        )
    address, count, which = (given.get(name) for name in _VARIABLES)
    if address is not None and not re.fullmatch(r".+:\d{1,5}", str(address)):
        raise DistributedError(f"coordinator_address={address!r} must be host:port, such as 10.0.0.2:8476")
    if count is not None and count < 1:
        raise DistributedError(f"num_processes={count} must be at least 1")
    if which is not None and (which < 0 or (count is not None and which >= count)):
        raise DistributedError(f"process_id={which} must lie in [0, num_processes={count})")


def _whole_number(name: str, value: object) -> int:
    try:
        return int(value)
    except ValueError:
        raise DistributedError(f"{name}={value!r} (from {_VARIABLES[name]}) must be a whole number") from None


def _surroundings(environment: Mapping[str, str]) -> str | None:
    """Which launcher started this process, if one that jax can ask about the others did."""
    if all(name in environment for name in _SLURM_STEP):
        return "slurm"
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "ompi"
    if importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS") != "cpu":
        return "tpu"
    return None


def _local_devices(environment: Mapping[str, str], around: str | None) -> tuple[int, ...] | None:
    """The GPUs of this process, as indices into those that it can see; None: jax's own choice.

    Under Slurm and Open MPI jax takes one GPU a process, numbered by the process's place on its machine. That leaves
    seven of eight idle with one process a machine, and names one that cannot be seen where the launcher bound each
    process to its own.
    """
    if around == "slurm":
        rank = int(environment["SLURM_LOCALID"])
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
        size = _tasks_of_node(tasks, int(environment.get("SLURM_NODEID", 0)))
    elif around == "ompi":
        rank = int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
        size = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    else:
        return None
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None  # jax reads it itself
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    total = int(on_node) if on_node.isdigit() else len(glob.glob("/dev/nvidia[0-9]*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    seen = len([x for x in visible.split(",") if x.strip()]) if visible is not None else total
    if seen == 0:
        return None
    if size == 1 or seen < total or seen < size:
        return tuple(range(seen))  # its own: all that it sees
    if seen % size:
        raise DistributedError(
            f"{size} processes on this machine cannot share {seen} GPUs evenly: start a number of processes that "
            f"divides {seen}, or set JAX_LOCAL_DEVICE_IDS for each"
        )
    each = seen // size
    return tuple(range(rank * each, (rank + 1) * each))


def _tasks_of_node(tasks_per_node: str, node: int) -> int:
    """Slurm's '4(x2),1' for node 1 -> 4."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[min(node, len(counts) - 1)]


def _alone() -> Start:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return Start(f"localhost:{port}", 1, 0, surroundings="alone")


def _quieten(process: int) -> None:
    """Of processes other than 0 the log shows warnings only, with the process's number; `--verbosity=1` shows all."""
    if process == 0:
        return
    logging.get_absl_handler().setFormatter(
        standard_logging.Formatter(f"%(asctime)s process {process}: %(message)s", "%H:%M:%S")
    )
    if logging.get_verbosity() <= logging.INFO:
        logging.set_verbosity(logging.WARNING)
