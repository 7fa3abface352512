"""Worker processes with results in order, robust to a crash of the decoder.

With `multiprocessing`, children import the parent's main program (jax, TensorFlow: seconds and hundreds of megabytes
each) or inherit the locks of these libraries' threads, and a pool is lost when one child dies, as a video decoder may
on damaged files. Here a child is a new interpreter that imports only the module of its function.
"""

import contextlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection, Pipe
from typing import Any

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vivit_jax.data import workers; workers._serve()"


class WorkerError(RuntimeError):
    """A task failed: it raised (the message holds the child's traceback), or its process died."""


def default_workers() -> int:
    """Returns the default number of worker processes: the CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: str, tasks: Iterable[Any], workers: int | None = None, look_ahead: int = 2) -> Iterator[Any]:
    """Yields `function(task)` for each task, in order; tasks are picklable and consumed as needed.

    A task whose process dies (a crash; or killed, as by a system that is out of memory) is tried once more, alone. If
    its process dies again, its result is a `WorkerError` as a value (not raised): other tasks continue. An exception of
    the function is raised as a `WorkerError`.

    Args:
      function: `"package.module:name"`, so that a child imports only that module.
      workers: processes; None: one per core, 0: none but this one.
      look_ahead: tasks started beyond one per worker; at most `workers + look_ahead` results are held.
    """
    count = default_workers() if workers is None else workers
    if count < 0:
        raise ValueError(f"workers is {count}; it must be 0 (this process) or more")
    if count == 0:
        yield from map(pkgutil.resolve_name(function), tasks)
        return
    local, stopping = threading.local(), threading.Event()
    children: list[_Child] = []

    def run(task: Any) -> Any:
        child = getattr(local, "child", None)
        if child is None or not child.alive():
            child = local.child = _Child(function)
            children.append(child)
        return None if stopping.is_set() else child.call(task)

    pool = ThreadPoolExecutor(count, thread_name_prefix="data-worker")
    waiting: deque[tuple[Any, Future]] = deque()

    def next_result() -> Any:
        task, future = waiting.popleft()
        if isinstance(result := future.result(), WorkerError):
            wait([other for _, other in waiting])
            result = pool.submit(run, task).result()
        return result

    try:
        for task in tasks:
            waiting.append((task, pool.submit(run, task)))
            if len(waiting) >= count + look_ahead:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        # Also reached on an exception and when the consumer stops early: no child outlives the generator.
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.close()


class _Child:
    """A worker process and its pipe."""

    def __init__(self, function: str):
        self.connection, child_end = Pipe(duplex=True)
        handle = child_end.fileno()
        # One thread per process, as there is one worker per core.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(handle), function]
        options = {"stdin": subprocess.DEVNULL, "env": environment, "process_group": 0}  # Ctrl-C is the parent's
        self.process = subprocess.Popen(command, pass_fds=[handle], **options)
        child_end.close()

    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, task: Any) -> Any:
        try:
            self.connection.send(task)
            succeeded, value = self.connection.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5.0)
            self.close()
            code = self.process.returncode
            killed = ": killed, perhaps for lack of memory" if code == -signal.SIGKILL else ""
            return WorkerError(f"the worker process died (exit status {code}{killed})")
        if not succeeded:
            raise WorkerError(f"a task failed in a worker process:\n{value}")
        return value

    def close(self) -> None:
        self.connection.close()
        if self.alive():
            self.process.terminate()
        self.process.wait()


def _serve() -> None:
    """Runs in the child: receives tasks and sends (succeeded, value or traceback) until the pipe is closed."""
    connection = Connection(int(sys.argv[2]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                answer = (True, pkgutil.resolve_name(sys.argv[3])(task))
            except BaseException:
                answer = (False, traceback.format_exc())
            connection.send(answer)
