"""Times a forward pass on the CPU with and without `keep_freed_memory`, in alternating processes.

    python -m benchmarks.allocator [--repeats=3] [--dtype=bfloat16]

ViViT-B/16x2, Model 1, one clip. Prints the median of five calls in each process: wall time, CPU time, page faults; and
the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time


def measure(dtype: str, keep: bool) -> None:
    """Prints the figures of this process."""
    import jax
    import jax.numpy as jnp

    from vivit_jax.models import ViViT, ViViTConfig
    from vivit_jax.utils.devices import keep_freed_memory

    kept = keep and keep_freed_memory()
    model = ViViT(ViViTConfig.from_name("ViViT-B/16x2", dtype=dtype, scan_layers=True))
    video = jnp.zeros((1, *model.config.video_shape))
    params = jax.jit(model.init)(jax.random.key(0), video)
    forward = jax.jit(model.apply).lower(params, video).compile()
    figures = []
    for _ in range(7):
        faults, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), time.perf_counter()
        forward(params, video).block_until_ready()
        now = resource.getrusage(resource.RUSAGE_SELF)
        figures.append((time.perf_counter() - wall, time.process_time() - cpu, now.ru_minflt - faults))
    wall, cpu, faults = (statistics.median(column) for column in zip(*figures[2:], strict=True))
    label = "kept" if kept else "default"
    print(f"{label:8} wall {wall:6.2f} s  CPU {cpu:6.2f} s  {faults:9,.0f} faults  {now.ru_maxrss >> 10:6,} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--child", choices=["kept", "default"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.dtype, options.child == "kept")
        return
    for _ in range(options.repeats):
        for child in ("default", "kept"):
            command = [sys.executable, "-m", "benchmarks.allocator", f"--dtype={options.dtype}", f"--child={child}"]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
