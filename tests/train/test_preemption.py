"""SIGTERM ends a run in time, also where the main thread hangs."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY

PROGRAM = """
import hashlib, sys
from vivit_jax.train import preemption
preemption.DEADLINE_SECONDS = float(sys.argv[1])
checkpoints = type("NoCheckpoints", (), {"reached_preemption": lambda self, count: False})()
with preemption.Preemption(checkpoints).listening() as stop:
    stop.training = sys.argv[2] == "training"
    print("ready", flush=True)
    if stop.training:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in which no Python handler runs
    else:
        for _ in range(1000):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**5)
"""


@pytest.mark.parametrize(
    ("deadline", "signals", "phase", "code", "says"),
    [
        (0.5, 1, "training", 143, "Not stopped 0.5 s after SIGTERM"),
        (600, 2, "training", 143, "A second SIGTERM"),
        (600, 1, "starting", 75, "nothing to save"),
    ],
    ids=["hang", "second signal", "start"],
)
def test_sigterm_ends_the_process(deadline, signals, phase, code, says):
    command = [sys.executable, "-c", PROGRAM, str(deadline), phase]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert says in errors
