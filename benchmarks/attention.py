"""Compares the attention backends: median time and temporary memory, forward and with gradients.

    python benchmarks/attention.py [--repeats=7]

Shapes are those of ViT-B (12 heads of 64) on one clip of 32 x 224 x 224 with tubelets of 2 x 16 x 16: joint attention
(Model 1), one frame's tokens for 16 frames (spatial, Models 2 and 3), one position's tokens for 196 positions
(temporal). The backends alternate within each repeat, so that noise of the machine affects both; the ratio is of the
medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from vivit_jax.models.attention_backends import BACKENDS

SHAPES = {
    "joint 3137": (1, 12, 3137, 64),
    "spatial 16 x 197": (16, 12, 197, 64),
    "temporal 196 x 16": (196, 12, 16, 64),
}


def compiled(backend, gradients: bool, qkv):
    """Returns the compiled program of a backend and its temporary memory in MiB."""
    program = backend
    if gradients:
        program = jax.grad(lambda q, k, v: jnp.sum(backend(q, k, v) ** 2), argnums=(0, 1, 2))
    program = jax.jit(program).lower(*qkv).compile()
    return program, program.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {repeats} repeats, medians")
    print(f"{'':18} {'':15} {'xla ms':>9} {'tiled ms':>9} {'ratio':>6} {'xla MiB':>9} {'tiled MiB':>9}")
    for name, shape in SHAPES.items():
        qkv = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3)]
        for gradients in (False, True):
            programs = {b: compiled(f, gradients, qkv) for b, f in BACKENDS.items()}
            times: dict[str, list[float]] = {backend: [] for backend in programs}
            for repeat in range(repeats + 1):
                for backend, (program, _) in programs.items():
                    start = time.perf_counter()
                    jax.block_until_ready(program(*qkv))
                    if repeat:  # the first is a warm-up
                        times[backend].append(1e3 * (time.perf_counter() - start))
            xla, tiled = (statistics.median(times[b]) for b in ("xla", "tiled"))
            kind = "with gradients" if gradients else "forward"
            print(
                f"{name:18} {kind:15} {xla:9.1f} {tiled:9.1f} {xla / tiled:6.2f} "
                f"{programs['xla'][1]:9.1f} {programs['tiled'][1]:9.1f}"
            )


if __name__ == "__main__":
    main()
