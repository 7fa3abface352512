"""A full disk: the log waits, the last good step stays, and the run stops or saves again once there is room."""

import errno
import os

import jax.numpy as jnp
import pytest

from vivit_jax.checkpoint import CheckpointError, Checkpoints, manager
from vivit_jax.utils import logs, storage

STATE = {"params": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(4)}


@pytest.fixture
def disk(monkeypatch):
    """The number of saves that still find the disk full, in a list."""
    full, save = [0], manager._Manager.save

    def save_if_room(self, *args, **kwargs):
        if full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, *args, **kwargs)

    monkeypatch.setattr(manager._Manager, "save", save_if_room)
    return full


@pytest.mark.parametrize("on_full", ["stop", "continue"])
def test_partial_write_of_the_step_before_does_not_lose_the_next(disk, tmp_path, on_full):
    with Checkpoints(tmp_path, on_full=on_full) as checkpoints:
        checkpoints.save(4, STATE, {})
        checkpoints.wait()
        disk[0] = 1
        checkpoints.save(8, STATE, {})
        checkpoints.wait()
        assert checkpoints.steps() == [8]


def test_full_disk_stops_the_run_and_keeps_the_last_step(disk, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, STATE, {})
    checkpoints.wait()
    disk[0] = 2
    with pytest.raises(CheckpointError, match=r"full.*step 4 is the last one saved.*run the same command"):
        checkpoints.save(8, STATE, {})
    assert checkpoints.steps() == [4]
    checkpoints.close()


def test_run_that_continues_saves_again_and_does_not_end_unsaved(disk, tmp_path):
    checkpoints = Checkpoints(tmp_path, on_full="continue")
    disk[0] = 2
    checkpoints.save(4, STATE, {})
    with pytest.raises(CheckpointError, match="step 4 was not saved"):
        checkpoints.wait()
    checkpoints.save(8, STATE, {})
    checkpoints.close()
    with Checkpoints(tmp_path, read_only=True) as saved:
        assert saved.steps() == [8]


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 3: No space left on device [os_error_code='28']", True),
        ("RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 3: Disk quota exceeded [os_error_code='122']", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes.", False),
        ("RESOURCE_EXHAUSTED: Rate limit exceeded [http_response_code='429']", False),
    ],
)
def test_the_memory_of_a_device_is_no_disk(message, full):
    assert storage.is_full(ValueError(message)) == full


def test_log_of_a_full_disk_is_written_later(tmp_path):
    path = tmp_path / logs.METRICS_FILE
    path.symlink_to("/dev/full")
    writer = logs.make_writer(tmp_path)
    writer.write_scalars(1, {"loss": 2.0})
    writer.flush()  # raises the errors of the threads that write
    path.unlink()
    writer.write_scalars(2, {"loss": 1.0})
    writer.close()
    assert logs.read_metrics(path) == {"loss": [(1, 2.0), (2, 1.0)]}
