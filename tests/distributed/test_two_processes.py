"""A run of one process, and one that is interrupted and resumed by two: the same numbers."""

import json
import socket
import subprocess
import sys

import flax.traverse_util
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits
from vivit_jax import convert

STOP = 4  # of 6 steps; the last checkpoint is that of step 3, in the middle of the second epoch


def run(data_dir, workdir, processes, mesh, stop_after=0):
    """The results, which must be the same in each process; None for a run that is interrupted."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [str(x) for x in (processes, port, data_dir, workdir, stop_after, json.dumps(mesh))]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.two_processes", str(process), *arguments],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(processes)
    ]  # fmt: skip
    outputs = [child.communicate(timeout=600) for child in children]
    for child, (out, err) in zip(children, outputs, strict=True):
        assert child.returncode == 0, err[-4000:]
        assert ("stopped" if stop_after else "RESULT") in out
    if stop_after:
        return None
    results = [json.loads(out.partition("RESULT")[2]) for out, _ in outputs]
    assert all(other == results[0] for other in results)
    return results[0]


@pytest.mark.slow
@pytest.mark.long
def test_one_and_two_processes_give_the_same_run_on_any_mesh(tmp_path):
    data = tmp_path / "data"
    build_digits(data, 20, 13)
    reference = run(data, tmp_path / "reference", 1, {"data": 8})
    assert reference["videos"] == 13
    assert reference["evaluated"] == pytest.approx(reference["trained"])

    # Started by one process, resumed by two and evaluated by one again, each time with another sharding of the state:
    # FSDP across the processes, frames and heads split within each.
    run(data, tmp_path / "w", 1, {"fsdp": 8}, stop_after=STOP)
    two = run(data, tmp_path / "w", 2, {"fsdp": 2, "tensor": 2, "sequence": 2})
    assert two["videos"] == 13
    assert two["evaluated"] == pytest.approx(reference["evaluated"], rel=1e-4)
    again = run(data, tmp_path / "w", 1, {"fsdp": 4, "tensor": 2})
    assert again["evaluated"] == pytest.approx(two["evaluated"], rel=1e-5)
    first, again = (
        flax.traverse_util.flatten_dict(convert.load_model(tmp_path / workdir)[1], sep="/")
        for workdir in ("reference", "w")
    )
    for name, leaf in first.items():
        # The softmax does not see a key's bias: its gradient is rounding, which Adam scales up to steps.
        tolerance = 1e-4 if name.endswith("key/bias") else 1e-5
        np.testing.assert_allclose(again[name], leaf, atol=tolerance, err_msg=name)
