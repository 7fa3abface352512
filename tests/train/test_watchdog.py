"""The watchdog of the train loop, in a process of its own."""

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import REPOSITORY
from vivit_jax.train.watchdog import Watchdog


def test_watchdog_ends_a_stalled_process_with_tracebacks():
    program = textwrap.dedent(
        """
        import time
        from vivit_jax.train.watchdog import Watchdog
        Watchdog(0).after_step()
        watchdog = Watchdog(0.6)
        time.sleep(1.2)  # compiling: the timer starts with the first step
        for _ in range(4):
            watchdog.after_step()
            time.sleep(0.2)
        with watchdog.paused():
            time.sleep(1.2)
        print("alive", flush=True)
        def stalled_collective():
            time.sleep(60)
        stalled_collective()
        """
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "alive" in done.stdout
    assert "in stalled_collective" in done.stderr


def test_negative_timeout_is_refused():
    with pytest.raises(ValueError, match="step_timeout_seconds=-1 must be at least 0"):
        Watchdog(-1)
