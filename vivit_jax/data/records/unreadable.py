"""Records that could not be read: a storage that fails is waited for; broken records are reported and limited."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import logging

from vivit_jax.data.host_tf import tf

_T = TypeVar("_T")
PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before a storage that fails is read again


class DataError(OSError):
    """Clips cannot be read: the storage fails, or too many records are broken; the message names files and way out."""


def read_again(read: Callable[[], _T], shard: str) -> _T | str:
    """Returns `read()` of a record in a shard, or the reason why the record is broken.

    While the storage fails, the shard's absence included, it waits; DataError if it still does after `PAUSES`.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
            return plain_message(error)
        except tf.errors.OpError as error:
            problem = f"{shard} cannot be read ({plain_message(error).removeprefix(f'{shard}; ')})"
        if pause is None:
            tried = f"tried {len(PAUSES) + 1} times in {sum(PAUSES):g} s"
            raise DataError(
                f"{problem}, {tried}. No clip was skipped: start the same command when it can be read again"
            )
        logging.warning("%s; it is read again in %g s.", problem, pause)
        time.sleep(pause)


class Limit:
    """Reports broken clips, and ends the training stream where they are more than `clips` of an epoch.

    `clips` and `steps_per_epoch` are of this process and its rows; `share`, for the message, is data.max_unreadable.
    """

    def __init__(self, clips: float, steps_per_epoch: float, share: float):
        self._clips, self._steps_per_epoch, self._share = clips, steps_per_epoch, share
        self._epoch, self._reasons = -1, []

    def check(self, step: int, reasons: Sequence[str], all_lost: bool) -> None:
        """Counts the broken clips of a batch, by the reasons that name them; DataError if they are too many."""
        epoch = int(step / self._steps_per_epoch)
        self._reasons = [*(self._reasons if epoch == self._epoch else ()), *reasons]
        self._epoch, count = epoch, len(self._reasons)
        for reason in reasons:
            logging.log_every_n_seconds(logging.ERROR, "Masked a clip (%d of this epoch): %s", 10, count, reason)
        problem = f"no clip of batch {step} can be read" if all_lost else None
        if count > self._clips:
            allowed = f"more than data.max_unreadable={self._share:g} allows ({self._clips:.0f})"
            problem = f"{count} clips of epoch {epoch} so far come from broken records, {allowed}"
        if problem:
            way_out = "`python -m vivit_jax.data.verify DIR` lists them; put sound copies there, or raise that limit"
            raise DataError("\n".join([f"{problem}. {way_out}. The last ones:", *self._reasons[-5:]]))


def plain_message(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message without the names of its nodes and the traceback of its graph."""
    lines = [line.split("}} ", 1)[-1].split(" [Op:", 1)[0].strip() for line in error.message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("[[", "Graph execution", "Detected at", 'File "'))]
    return " ".join(dict.fromkeys(kept))[:300] or type(error).__name__
