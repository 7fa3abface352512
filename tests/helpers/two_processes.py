"""One process of a run of several processes, for `test_two_processes`.

Start it with `python -m tests.helpers.two_processes`, arguments as `main` says.

All processes together have 8 virtual devices, so that the same program runs with any number of processes.
"""

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

DEVICES = 8


def main(
    process: int, processes: int, port: int, data_dir: str, workdir: str, stop_after: int, mesh: dict[str, int]
) -> None:
    """Trains the run of `tests.helpers.experiment` and evaluates it; stops after `stop_after` steps unless 0."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    # More threads than devices: a thread that waits for a part of its product blocks the thread that would compute it,
    # while the others wait in a collective: seen as "Termination timeout for all reduce" in runs with FSDP.
    os.environ["PJRT_NPROC"] = "32"
    import jax

    jax.config.update("jax_platforms", "cpu")
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process, heartbeat_timeout_seconds=30)
    from tests.helpers.experiment import experiment, without_pictures  # sets XLA's flags for the tests' own process
    from tests.helpers.interrupt import killed_after
    from vivit_jax import train
    from vivit_jax.evaluation import evaluate

    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    assert jax.device_count() == DEVICES
    run = dataclasses.replace(experiment(Path(data_dir), model__num_heads=4), mesh=mesh)
    if stop_after:
        with contextlib.suppress(KeyboardInterrupt), killed_after(stop_after):
            train.train(run, workdir)
            raise AssertionError("the run was not interrupted")
        print("stopped")
        return
    with without_pictures():
        trained = train.train(run, workdir)
    result = evaluate.evaluate(run, workdir)
    print("RESULT" + json.dumps({"trained": trained, "evaluated": result.scalars, "videos": result.counted}))


if __name__ == "__main__":
    process, processes, port, data_dir, workdir, stop_after, mesh = sys.argv[1:]
    main(int(process), int(processes), int(port), data_dir, workdir, int(stop_after), json.loads(mesh))
