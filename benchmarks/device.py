"""Times train steps and forward passes on one GPU or TPU, beside Hugging Face's ViViT, within a time budget.

    python -m benchmarks.device --out=FOLDER [--minutes=8] [--parts=speed,peers,kernels]
    python -m benchmarks.device --out=FOLDER --parts=profile

Parts:
  speed    the project's train step (SGD with momentum, clipping, guard) and forward pass in bfloat16: ViViT-B and L,
           all models, attention backends, batch sizes, dtype of the residual stream, scan and remat; peak memory, and
           MFU: the share of the matrix-product rate, measured in the same call, that the model's own matrix products
           reach (recomputation does not count)
  peers    Hugging Face's model, eager and compiled, in a process of its own (extra `[parity]`, PyTorch for CUDA)
  kernels  errors of the attention backends against float64, values and gradients
  profile  bytes and time of train steps by part of the model, by itself: it takes the CUDA graphs apart

Programs are compiled in parallel threads, in groups; the most important rows come first, and those for which no time is
left are named. FOLDER/device.json is written after each row. Needs jax, flax, optax and NumPy alone.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import agreement, subjects
from benchmarks.device_plan import CLIP, Row, describe, peer_plan, plan, print_peers, summary

PARTS = ("speed", "peers", "kernels", "profile")  # all but the last by default
GROUP = 12  # programs compiled at the same time
PEER_SHARE = 0.25  # of the time budget
PRODUCT = (8192, 8192, 8192)
LENGTHS = (1, 16, 17, 197, 3137)  # tokens, of the part `kernels`


class Program(NamedTuple):
    """A compiled row."""

    row: Row
    config: Any
    train: Any  # the `TrainProgram`, None for a forward pass
    compiled: Any
    seconds: float  # of tracing and compilation

    @property
    def gib(self) -> float:
        """Peak memory by the compiler: arguments, results that are not in their place, and temporaries."""
        memory = self.compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return (memory.argument_size_in_bytes + memory.temp_size_in_bytes + results) / 2**30

    def work(self) -> subjects.Work:
        """Returns the program on random arguments, which are placed on the device."""
        import jax
        import jax.numpy as jnp

        if self.train is None:
            params = subjects.inference_params(self.config)
            pixels = subjects.random_clips(self.config, self.row.batch)
            video = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
            return subjects.Work(lambda: self.compiled({"params": params}, video), jax.block_until_ready)
        state, clips = jax.device_put(subjects.train_arguments(self.train, self.row.batch))

        def launch() -> Any:
            nonlocal state
            state, metrics = self.compiled(state, clips)
            return metrics

        return subjects.Work(launch, jax.block_until_ready)


def build(row: Row, sizes: dict[str, Any]) -> Program:
    """Traces and compiles a row, with abstract arguments."""
    import jax
    import jax.numpy as jnp

    from vivit_jax.models import ViViT, abstract_params, inference
    from vivit_jax.train_step import SINGLE_HEAD

    began = time.perf_counter()
    fields = {"name": row.name, **CLIP, **subjects.MODELS[row.model], **row.options, **sizes}
    config, batch = subjects.model_config(fields), row.batch
    if row.kind == "train":
        train = subjects.train_program(config)
        clips = {
            "video": jax.ShapeDtypeStruct((batch, *config.video_shape), jnp.uint8),
            "label": {SINGLE_HEAD: jax.ShapeDtypeStruct((batch,), jnp.int32)},
            "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
        }
        lowered = train.step.lower(train.state, clips)
    else:
        train, video = None, jax.ShapeDtypeStruct((batch, *config.video_shape), jnp.float32)
        cast = jax.eval_shape(lambda params: inference.cast_params(params, config), abstract_params(config))
        params = jax.eval_shape(lambda params: inference.unstacked(params, config), cast)
        lowered = inference.jit(ViViT(config).apply, config).lower({"params": params}, video)
    return Program(row, config, train, lowered.compile(), time.perf_counter() - began)


def time_work(work: subjects.Work, blocking: bool, budget: float = 1.0) -> float:
    """Returns the median seconds of a call: of single calls, or of rows of calls as a train loop makes them."""
    for _ in range(2):
        once = subjects.seconds(work)  # a warm-up
    calls = 1 if blocking else max(2, min(20, int(budget / 3 / once)))
    repeats = max(5, min(50, int(budget / once))) if blocking else 3
    return statistics.median(subjects.seconds(work, calls) for _ in range(repeats))


def first_line(error: Exception) -> str:
    text = str(error) or repr(error)
    return "out of memory" if "RESOURCE_EXHAUSTED" in text or "out of memory" in text else text.splitlines()[0][:200]


class Bench:
    """One call: its results, which are written as they come, and its deadline."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.perf_counter()
        self.results: dict[str, Any] = {"machine": {}, "rates": {}, "rows": [], "peers": [], "skipped": []}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return 60 * self.options.minutes - (time.perf_counter() - self.began)

    def save(self) -> None:
        self.options.out.mkdir(parents=True, exist_ok=True)
        temporary = self.options.out / "device.json.new"
        temporary.write_text(json.dumps(self.results, indent=1))
        temporary.replace(self.options.out / "device.json")

    def skip(self, what: str) -> None:
        self.results["skipped"].append(what)
        self.save()

    def measure_rates(self) -> None:
        """The device's product rate in bfloat16, FLOP/s, and the bytes/s that it reads and writes memory with."""
        import jax
        import jax.numpy as jnp

        m, k, n = self.options.product
        product = subjects.matrix_product("xla", "bfloat16", self.options.product)
        rate = 2 * m * k * n / time_work(product, blocking=False)
        array = jnp.ones((m * k * 4,), jnp.float32)
        add_one = jax.jit(lambda x: x + 1)
        copy = subjects.Work(lambda: add_one(array), jax.block_until_ready)
        rates = self.results["rates"]
        rates["product_flops"] = max(rate, rates.get("product_flops", 0.0))
        rates["memory_bytes"] = 2 * array.nbytes / time_work(copy, blocking=False)
        print(f"matrix product {rate / 1e12:,.4g} TFLOP/s, memory {rates['memory_bytes'] / 1e9:,.4g} GB/s", flush=True)
        self.save()

    def compile_group(self, rows: list[Row]) -> Iterator[Program]:
        """Compiles rows in parallel and yields the programs in order; errors become rows of the results."""
        pool = concurrent.futures.ThreadPoolExecutor(max(1, min(len(rows), os.cpu_count() or 1)))
        futures = {pool.submit(build, row, self.options.sizes): row for row in rows}
        concurrent.futures.wait(futures, timeout=max(0.0, self.left()))
        pool.shutdown(wait=False, cancel_futures=True)
        for future, row in futures.items():
            if not future.done() or future.cancelled():
                self.skip(f"{row.label} (not compiled in time)")
            elif error := future.exception():
                self.add(row, error=first_line(error))
            else:
                yield future.result()

    def add(self, row: Row, **values: Any) -> None:
        self.results["rows"].append({**row._asdict(), **values})
        print(f"{row.label:90} {describe(values)}", flush=True)
        self.save()

    def measure(self, program: Program) -> None:
        row = program.row
        try:
            seconds = time_work(program.work(), blocking=row.kind == "forward" and row.batch == 1)
        except Exception as error:  # out of memory, or a kernel that the device refuses: the other rows go on
            self.add(row, error=first_line(error), gib=program.gib)
            return
        flops = subjects.operations(program.config) * (3 if row.kind == "train" else 1) * row.batch
        mfu = flops / seconds / self.results["rates"]["product_flops"]
        values = {"ms": 1e3 * seconds, "clips_per_second": row.batch / seconds, "mfu": mfu, "gib": program.gib}
        self.add(row, **values, compile_seconds=program.seconds)

    def speed(self, rows: list[Row]) -> None:
        rows, per_program = list(rows), 0.0
        for number in range(len(rows)):
            # Measuring takes about five seconds a program; the first group tells how long compilation takes.
            affordable = int(self.left() / (per_program + 5)) if per_program else GROUP
            group, rows = rows[: min(GROUP, affordable)], rows[min(GROUP, affordable) :]
            if not group or self.left() <= 0:
                for row in group + rows:
                    self.skip(row.label)
                return
            began = time.perf_counter()
            programs = list(self.compile_group(group))
            per_program = (time.perf_counter() - began) / len(group)
            for program in programs:
                if self.left() > 0:
                    self.measure(program)
                else:
                    self.skip(program.row.label)
            if number == 0 and "kernels" in self.options.parts:
                self.kernels()
            if not rows:
                return

    def kernels(self) -> None:
        """Errors of each backend that runs here; the lengths are computed in parallel."""
        from vivit_jax.models.attention_backends import BACKENDS

        pool = concurrent.futures.ThreadPoolExecutor(len(self.options.lengths))
        futures = {length: pool.submit(agreement.errors, BACKENDS, length) for length in self.options.lengths}
        concurrent.futures.wait(futures.values(), timeout=max(0.0, self.left()))
        pool.shutdown(wait=False, cancel_futures=True)
        self.results["kernels"] = found = []
        for length, future in futures.items():
            if not future.done() or future.cancelled():
                self.skip(f"errors of the backends at {length} tokens")
                continue
            for name, errors in future.result().items():
                row: dict[str, Any] = {"backend": name, "tokens": length}
                if isinstance(errors, Exception):
                    row |= {"verdict": "refused", "error": first_line(errors)}
                    text = row["error"]
                else:
                    agrees = max(errors.values()) < agreement.TOLERANCE
                    row |= {"verdict": "agrees" if agrees else "DISAGREES", "errors": errors}
                    text = ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
                found.append(row)
                print(f"{length:5} tokens, {name:7} {row['verdict']}: {text}", flush=True)
        self.save()

    def profile(self, program: Program) -> None:
        """Parts of a train step."""
        from benchmarks import traffic

        try:
            work = program.work()
            subjects.seconds(work)  # a warm-up
            times = traffic.kernel_times(lambda: work.wait(work.launch()))
            parts = traffic.by_part(traffic.kernels(program.compiled.as_text()), times)
        except Exception as error:  # of a profiler
            self.skip(f"profile of {program.row.label} ({first_line(error)})")
            return
        self.results.setdefault("profiles", []).append({"row": program.row._asdict(), "parts": parts})
        print(f"Parts of {program.row.label}\n{'':40} {'kernels':>8} {'GB':>8} {'ms':>8} {'GB/s':>8}")
        for part in parts:
            rate = f"{part['bytes'] / part['seconds'] / 1e9:8,.0f}" if part["seconds"] else f"{'-':>8}"
            figures = f"{part['kernels']:8} {part['bytes'] / 1e9:8.2f} {1e3 * part['seconds']:8.2f} {rate}"
            print(f"{part['part']:40} {figures}", flush=True)
        self.save()

    def peers(self) -> None:
        command = [self.options.peer_python, "-m", "benchmarks.device", "--peer-rows", json.dumps(self.options.sizes)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            lines, _ = process.communicate(timeout=PEER_SHARE * 60 * self.options.minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes in which torch.compile works
            lines, _ = process.communicate()
            self.skip("the rest of Hugging Face's rows")
        self.results["peers"] = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
        print_peers(self.results)
        self.save()


def peer_rows(sizes: dict[str, Any]) -> None:
    """Measures Hugging Face's rows in this process and prints each as JSON."""
    try:
        import torch
        import transformers
    except ImportError as error:
        print(json.dumps({"error": f"left out: {error}; install the extra [parity]"}))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not sizes:
        print(json.dumps({"error": f"left out: torch {torch.__version__} finds no GPU"}))
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    for row, compiled in peer_plan():
        label = f"{row.kind:8}batch {row.batch:<3} {'compiled' if compiled else 'eager':9}{versions}"
        result: dict[str, Any] = {"kind": row.kind, "batch": row.batch, "compiled": compiled, "label": label}
        make = subjects.peer_train_step if row.kind == "train" else subjects.peer_forward
        try:
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            work = make({"name": row.name, **CLIP, **sizes}, row.batch, device, compiled)
            seconds = time_work(work, blocking=row.kind == "forward" and row.batch == 1)
            result |= {"ms": 1e3 * seconds, "clips_per_second": row.batch / seconds}
            if device == "cuda":
                result["gib"] = torch.cuda.max_memory_allocated() / 2**30
        except Exception as error:  # out of memory, or no compiler for torch.compile
            result["error"] = first_line(error)
        print(json.dumps(result), flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of device.json; default: the current one")
    parser.add_argument("--minutes", type=float, default=8.0, help="time budget; default: 8")
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=PARTS[:3],
        help="comma-separated; default: all but profile",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has PyTorch and transformers")
    parser.add_argument("--peer-rows", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    if "profile" in options.parts and len(options.parts) > 1:
        parser.error("--parts=profile runs by itself")
    return argparse.Namespace(**vars(options), sizes={}, product=PRODUCT, lengths=LENGTHS)  # tests use smaller ones


def run(options: argparse.Namespace, rows: list[Row] | None = None) -> dict[str, Any]:
    """Runs the parts asked for and returns the results."""
    bench = Bench(options)
    if "peers" in options.parts:  # first: jax keeps the memory that it has taken
        bench.peers()
    import jax

    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
    bench.results["machine"] = {"device": device.device_kind, **versions, "date": time.strftime("%Y-%m-%d")}
    print(", ".join(bench.results["machine"].values()), flush=True)
    bench.measure_rates()
    if "speed" in options.parts:
        bench.speed(plan() if rows is None else rows)
        bench.measure_rates()
    elif "kernels" in options.parts:
        bench.kernels()
    if "profile" in options.parts:
        train = [row for row in (plan() if rows is None else rows) if row.kind == "train"]
        for program in bench.compile_group(train[:4]):
            bench.profile(program)
    summary(bench.results)
    bench.save()
    return bench.results


if __name__ == "__main__":
    # Hugging Face's process has ended when jax takes the memory. The rest is for the libraries of the kernels.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    chosen = parse(None)
    if chosen.peer_rows is not None:
        peer_rows(chosen.peer_rows)
        sys.exit()
    if "profile" in chosen.parts:  # a profile shows a CUDA graph as one kernel
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    run(chosen)
    sys.stdout.flush()
    os._exit(0)  # do not wait for compilations that came too late
