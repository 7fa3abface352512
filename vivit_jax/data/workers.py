"""Worker processes that return their results in order, and that outlive a crash of the decoder.

Why not `multiprocessing`: with the `spawn` method its children import the parent's main program again (jax, TensorFlow:
seconds and hundreds of megabytes each), with `fork` they inherit the locks of both libraries' threads. And a pool is
lost as a whole when one child dies, which a video decoder fed with damaged files may do. Here a child is a fresh
interpreter that imports the one module its function lives in.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vivit_jax.data import workers; workers._serve()"


class WorkerError(RuntimeError):
    """A task failed: it raised (the message holds the child's traceback), or its process died."""


def default_workers() -> int:
    """Number of worker processes when none is asked for: the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve(function: str) -> Any:
    """The function named `"package.module:name"`."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def ordered_map(function: str, tasks: Iterable[Any], workers: int | None = None, look_ahead: int = 2) -> Iterator[Any]:
    """Results of `function(task)` for each task, in the order of the tasks.

    Args:
      function: `"package.module:name"`, so that a child imports that module and nothing else.
      tasks: picklable arguments; taken from the iterable as they are needed.
      workers: processes; None for one a core, 0 for none (in this process).
      look_ahead: tasks begun beyond those the workers are on. Bounds memory: at most `workers + look_ahead` results
        wait for their turn.

    Yields:
      What the function returned, or a `WorkerError` as a value (not raised) where the task's process died: a crash of
      one task must not cost the others.

    Raises:
      WorkerError: the function raised; what a task may reasonably meet it has to return.
    """
    count = default_workers() if workers is None else workers
    if count < 0:
        raise ValueError(f"workers is {count}; it must be 0 (this process) or more")
    if count == 0:
        yield from map(resolve(function), tasks)
        return
    local = threading.local()
    children: list[_Child] = []
    lock = threading.Lock()
    stopping = threading.Event()

    def run(task: Any) -> Any:
        child = getattr(local, "child", None)
        if child is None or not child.alive():
            child = local.child = _Child(function)
            with lock:
                children.append(child)
        if stopping.is_set():
            return None
        return child.call(task)

    pool = ThreadPoolExecutor(count, thread_name_prefix="data-worker")
    waiting: deque[Future] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(run, task))
            if len(waiting) >= count + look_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Reached at the end, on an exception and when the consumer stops early: no child is left behind.
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        with lock:
            for child in children:
                child.close()


class _Child:
    """One worker process and the pipe to it."""

    def __init__(self, function: str):
        self.connection, theirs = Pipe(duplex=True)
        handle = theirs.fileno()
        # One thread a process: the workers are as many as the cores.
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(handle), function]
        self.process = subprocess.Popen(command, pass_fds=[handle], stdin=subprocess.DEVNULL, env=environment)
        theirs.close()

    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, task: Any) -> Any:
        try:
            self.connection.send(task)
            good, value = self.connection.recv()
        except (EOFError, OSError):
            for _ in range(50):
                if not self.alive():
                    break
                time.sleep(0.1)
            self.close()
            return WorkerError(f"the worker process died (exit status {self.process.returncode})")
        if not good:
            raise WorkerError(f"a task failed in a worker process:\n{value}")
        return value

    def close(self) -> None:
        self.connection.close()
        if self.alive():
            self.process.terminate()
        self.process.wait()


def _serve() -> None:
    """The child's loop: tasks in, (succeeded, value or traceback) out, until the pipe is closed."""
    connection = Connection(int(sys.argv[2]))
    function = None
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            function = function or resolve(sys.argv[3])
            answer = (True, function(task))
        except KeyboardInterrupt:
            return
        except BaseException:
            answer = (False, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return
