"""Compares the attention backends by number of tokens: median time and peak memory, forward and with gradients.

    python -m benchmarks.attention [--dtype=bfloat16] [--tokens=197,3137] [--repeats=7] [--out=attention.json]

Heads and width are those of ViT-B (12 heads of 64). Each row has as many sequences as make up the tokens of one clip,
about 3,137 in all: 3,137 tokens are Model 1, 197 the spatial attention of Models 2 and 3, 16 and 17 their temporal
attention. Inputs and outputs are [sequences, N, heads, head_dim], as the projections make and take them. The backends
that run on this device alternate within each repeat, so that noise of the machine affects all of them. Memory is
that over the inputs: of the process on a CPU (the compiler does not count what XLA allocates inside of calls there),
by the compiler elsewhere. `vivit_jax/models/attention_choice.py` cites these rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.load import memory_now, memory_peak
from vivit_jax.models.attention_backends import BACKENDS

TOKENS = (16, 17, 64, 128, 197, 256, 512, 1024, 1569, 3137)
HEADS, HEAD_DIM, CLIP_TOKENS = 12, 64, 3137


def attend(backend: str) -> Callable[..., jax.Array]:
    """Returns a backend as a function of [sequences, N, heads, head_dim]."""

    def function(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        out = BACKENDS[backend](*(jnp.moveaxis(x, -2, -3) for x in (query, key, value)))
        return jnp.moveaxis(out, -3, -2)

    return function


def compile_backend(backend: str, gradients: bool, qkv: list[jax.Array]) -> Any:
    """Returns the compiled program."""
    program = attend(backend)
    if gradients:

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attend(backend)(q, k, v).astype(jnp.float32) ** 2)

        program = jax.grad(loss, argnums=(0, 1, 2))
    return jax.jit(program).lower(*qkv).compile()


def measure(tokens: int, dtype: str, gradients: bool, backends: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Returns {backend: {"ms": median, "mib": peak memory}}, or {"error": message} where one does not run."""
    shape = (max(1, round(CLIP_TOKENS / tokens)), tokens, HEADS, HEAD_DIM)
    qkv = [jax.random.normal(key, shape).astype(dtype) for key in jax.random.split(jax.random.key(0), 3)]
    programs, found = {}, {}
    for backend in backends:
        try:
            program = compile_backend(backend, gradients, qkv)
            before = memory_now()
            jax.block_until_ready(program(*qkv))  # a warm-up
            memory = program.memory_analysis()
            size = memory.temp_size_in_bytes + memory.output_size_in_bytes
            size = memory_peak() - before if jax.default_backend() == "cpu" else size
            programs[backend], found[backend] = program, {"mib": size / 2**20}
        except Exception as error:  # a backend may refuse a device, a length or a dtype, or run out of memory
            found[backend] = {"error": str(error).splitlines()[0][:160]}
    times: dict[str, list[float]] = {backend: [] for backend in programs}
    for _ in range(repeats):
        for backend, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*qkv))
            times[backend].append(1e3 * (time.perf_counter() - start))
    for backend, values in times.items():
        found[backend]["ms"] = statistics.median(values)
    return found


def main() -> None:
    """Measures all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma-separated; default: all")
    parser.add_argument("--dtype", default="float32,bfloat16", help="comma-separated; default: both")
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)), help="comma-separated sequence lengths")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    backends, rows = arguments.backends.split(","), []
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, medians of {arguments.repeats}; "
        "ms (MiB over the inputs)"
    )
    print(f"{'dtype':9} {'':14} {'tokens':>6} " + " ".join(f"{backend:>18}" for backend in backends) + "  fastest")
    for dtype in arguments.dtype.split(","):
        for gradients in (False, True):
            kind = "with gradients" if gradients else "forward"
            for tokens in map(int, arguments.tokens.split(",")):
                found = measure(tokens, dtype, gradients, backends, arguments.repeats)
                rows.append({"dtype": dtype, "kind": kind, "tokens": tokens, "backends": found})
                cells = (
                    f"{found[b]['ms']:9.2f} ({found[b]['mib']:6.0f})" if "ms" in found[b] else f"{'-':>18}"
                    for b in backends
                )
                ran = {b: cell["ms"] for b, cell in found.items() if "ms" in cell}
                fastest = min(ran, key=ran.get, default="none runs")
                print(f"{dtype:9} {kind:14} {tokens:6} " + " ".join(cells) + f"  {fastest}", flush=True)
    for backend in backends:
        errors = {row["backends"][backend]["error"]: None for row in rows if "error" in row["backends"][backend]}
        for error in errors:
            print(f"{backend} does not run: {error}")
    if arguments.out:
        report = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "repeats": arguments.repeats}
        with open(arguments.out, "w") as file:
            json.dump(report | {"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
