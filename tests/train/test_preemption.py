"""SIGTERM and Ctrl-C end a run in time, also where the main thread hangs."""

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
    ("number", "deadline", "signals", "phase", "code", "says"),
    [
        (signal.SIGTERM, 0.5, 1, "training", 143, "Not stopped 0.5 s after SIGTERM"),
        (signal.SIGTERM, 600, 2, "training", 143, "A second signal (SIGTERM)"),
        (signal.SIGTERM, 600, 1, "starting", 75, "nothing to save"),
        (signal.SIGINT, 0.1, 2, "training", 130, "Ctrl-C: the run saves its next step"),  # without a deadline
        (signal.SIGINT, 600, 1, "starting", 130, "nothing to save"),
    ],
    ids=["hang", "second signal", "start", "second Ctrl-C", "Ctrl-C at the start"],
)
def test_signals_end_the_process(number, deadline, signals, phase, code, says):
    command = [sys.executable, "-c", PROGRAM, str(deadline), phase]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            process.send_signal(number)
            time.sleep(0.3)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert says in errors
    assert "Traceback" not in errors
