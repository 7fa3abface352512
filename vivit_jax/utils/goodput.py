"""Where the time of a run goes, over all of its starts: `goodput.jsonl` in its workdir."""

import contextlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax.utils import logs, storage
from vivit_jax.utils.extras import BEGAN

FILE = "goodput.jsonl"
# `start` is all else before the first step; `repeated`: steps that an earlier process had done, but not saved; `lost`:
# from the last line of a killed process to its end.
CAUSES = ("step", "start", "image model", "compile", "data", "evaluation", "checkpoint", "repeated", "lost", "end")
_LINE_SECONDS, _BEAT_SECONDS = 60.0, 1.0  # between two lines in steps; between two signs of life, the file's time


class Ledger:
    """Divides the time of a process among `CAUSES`. Each line has the sums of a process so far: its last counts.

    The first begins with the program. A thread waits for the outputs: data count only while devices are idle.
    """

    _first = True

    def __init__(self) -> None:
        self._began = self._last = BEGAN if Ledger._first else time.perf_counter()
        Ledger._first = False
        self.parts: dict[str, float] = {}  # seconds by cause
        self._line: dict[str, Any] = {"started": round(time.time() - time.perf_counter() + self._began, 3), "lost": 0.0}
        self._file: epath.Path | None = None
        self._step, self._done_before, self._written, self._ended = 0, 0, 0.0, threading.Event()
        self._waiter = ThreadPoolExecutor(1, "ledger")
        self._computed = self._waiter.submit(time.perf_counter)

    def mark(self, part: str, until: float | None = None) -> None:
        """Counts the time since the last mark, to now or to a time of `perf_counter` in between, as `part`."""
        now = time.perf_counter() if until is None else max(until, self._last)
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return f"{self._last - self._began:.1f} s ({parts})"

    def open(self, workdir: epath.PathLike) -> None:
        """Begins to write, from process 0; what a killed process has not written is lost."""
        if jax.process_index() != 0:
            return
        self._file, remote = epath.Path(workdir) / FILE, storage.is_remote(workdir)
        if lines := _lines(workdir):
            self._done_before = max(line["step"] for line in lines)
            died = 0.0 if remote else min(os.stat(self._file).st_mtime, self._line["started"])
            self._line["lost"] = round(max(0.0, died - lines[-1]["time"]), 3)
        self.write()
        if not remote:
            threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def stepped(self, step: int, outputs: Any = None) -> None:
        """Counts the time since the last mark as that of a step, whose `outputs` the devices compute from here on."""
        self._step = step
        self.mark("repeated" if step <= self._done_before else "step")
        if outputs is not None:
            self._computed = self._waiter.submit(lambda: (jax.block_until_ready(outputs), time.perf_counter())[1])
        elif time.monotonic() - self._written > _LINE_SECONDS:
            self.write()

    def waited(self, step: int) -> None:
        """Counts the time since the last mark as a wait for the data of a step, while devices computed as a step."""
        causes = ("repeated", "repeated") if step <= self._done_before else ("step", "data")
        self.mark(causes[0], self._computed.result() if self._computed.done() else None)
        self.mark(causes[1])

    def write(self, cause: str | None = None) -> None:
        """Appends a line, after counting the time since the last mark as `cause`."""
        if cause:
            self.mark(cause)
        if self._file is None:
            return
        seconds = dict.fromkeys(CAUSES, 0.0)
        for part, value in self.parts.items():
            seconds[part if part in CAUSES else "start"] += round(value, 3)
        self._line |= {"step": self._step, "time": self._line["started"] + sum(seconds.values()), "seconds": seconds}
        with storage.optional(FILE), self._file.open("a") as file:
            file.write(f"\n{json.dumps(self._line)}")  # the line before may be cut short
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes and logs the result."""
        self._ended.set()
        self._waiter.shutdown(wait=False)
        self.write("end")
        if self._file is not None and (found := read(self._file.parent)):
            seconds, total = found["seconds"], sum(found["seconds"].values())
            parts = ", ".join(f"{cause} {value:.1f}" for cause, value in seconds.items())
            away = f"{found['starts']} starts, {found['away']:.1f} s between them"
            share = 100 * seconds.get("step", 0.0) / total
            logging.info("Goodput %.1f %% of %.1f s: %s; %s", share, total, parts, away)


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """Returns `seconds` {cause: sum over all starts}, `starts`, and the seconds `away` between them; {} if unknown."""
    last = list({line["started"]: line for line in _lines(workdir)}.values())
    if not last:
        return {}
    seconds = {cause: sum(line["seconds"].get(cause, 0.0) for line in last) for cause in CAUSES}
    seconds["lost"] = sum(line["lost"] for line in last)
    away = max(0.0, last[-1]["time"] - last[0]["started"] - sum(seconds.values()))
    return {"seconds": {name: value for name, value in seconds.items() if value}, "starts": len(last), "away": away}


def _lines(workdir: epath.PathLike) -> list[dict[str, Any]]:
    lines = logs.read_lines(epath.Path(workdir) / FILE)
    return [line for line in lines if {"seconds", "started", "time", "lost"} <= line.keys()]
