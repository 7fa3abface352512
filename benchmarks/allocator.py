"""Times programs on the CPU with and without `keep_freed_memory`, in alternating processes.

    python -m benchmarks.allocator [--repeats=3] [--programs=forward,small,quickstart] [--dtype=float32]

Programs: the forward pass of ViViT-B/16x2, Model 1, on one clip; the train step of the small Model 1 of
benchmarks/models.py; and that of the quickstart's model. Prints the medians of each process: wall time, CPU time, page
faults; and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

from benchmarks import subjects
from configs.moving_digits import get_config
from vivit_jax.utils.devices import keep_freed_memory


def work(program: str, dtype: str) -> subjects.Work:
    """Returns a program, compiled."""
    if program == "quickstart":
        fields = {**get_config().model.to_dict(), "num_classes": 80, "dtype": dtype}
        return subjects.our_train_step({name: value for name, value in fields.items() if value is not None}, 32)
    if program == "small":
        return subjects.our_train_step({**subjects.SMALL, "dtype": dtype}, subjects.SMALL_BATCH)
    return subjects.our_forward({"name": "ViViT-B/16x2", "dtype": dtype, "scan_layers": True}, 1)


def measure(program: str, dtype: str, keep: bool) -> None:
    """Prints the figures of this process."""
    kept, timed, figures = keep and keep_freed_memory(), work(program, dtype), []
    for _ in range(32 if program == "quickstart" else 7):
        faults, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), time.perf_counter()
        timed.wait(timed.launch())
        now = resource.getrusage(resource.RUSAGE_SELF)
        figures.append((time.perf_counter() - wall, time.process_time() - cpu, now.ru_minflt - faults))
    wall, cpu, faults = (statistics.median(column) for column in zip(*figures[2:], strict=True))
    label, peak = "kept" if kept else "default", now.ru_maxrss >> 10
    print(f"{program:10} {label:7} wall {wall:6.3f} s  CPU {cpu:6.3f} s  {faults:9,.0f} faults  {peak:6,} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--programs", default="forward,small,quickstart")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", choices=["kept", "default"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.programs, options.dtype, options.child == "kept")
        return
    for program in options.programs.split(","):
        for _ in range(options.repeats):
            for child in ("default", "kept"):
                given = [f"--programs={program}", f"--dtype={options.dtype}", f"--child={child}"]
                subprocess.run([sys.executable, "-m", "benchmarks.allocator", *given], check=True)


if __name__ == "__main__":
    main()
