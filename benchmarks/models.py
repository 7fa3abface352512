"""Times the models on this CPU, beside Hugging Face's ViViT and the machine's matrix-product rate.

    python -m benchmarks.models                                 all parts
    python -m benchmarks.models --parts=products,forward --models="Model 1" --dtypes=bfloat16

Parts:

  forward   forward pass of one clip of 32 x 224 x 224, ViViT-B/16x2, all models; Model 1 beside Hugging Face's
  memory    peak memory of the same, over that of the weights, in fresh processes
  train     train step of a small Model 1 (forward, backward, clipping, SGD), beside Hugging Face's
  tokens    time and peak memory of Models 1 to 4 against the number of tokens, with fitted exponents

Each side runs in a process of its own and the sides alternate within each repeat, so that noise of the machine affects
all; figures are medians. Hugging Face's model has PyTorch's fused attention (SDPA) and, in bfloat16, bfloat16 weights.
PyTorch and transformers are in the extra `[parity]`; without them these rows are left out. They may be installed for
another Python: `--peer-python=/path/to/python`. `--out=FILE.json` adds the results to those that the file has.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import subjects
from benchmarks.load import memory_now, memory_peak

PARTS = ("forward", "memory", "train", "tokens")
DTYPES = ("float32", "bfloat16")
LIBRARIES = {"xla": "ours", "numpy": "ours", "pytorch": "peer"}  # matrix products, by the process that runs them
# (m, k, n): the two dense layers of the MLP and the projections, for the 3,137 tokens of a clip.
PRODUCTS = ((3137, 3072, 768), (3137, 768, 3072), (3137, 768, 768))
CLIP = {"name": "ViViT-B/16x2", "num_frames": 32, "image_size": 224, "num_classes": 400}
FRAMES = (2, 4, 8, 16, 32, 64)  # 196 tokens for every two
SIDES = {
    ("ours", "forward"): subjects.our_forward,
    ("ours", "train"): subjects.our_train_step,
    ("peer", "forward"): subjects.peer_forward,
    ("peer", "train"): subjects.peer_train_step,
}


class Worker:
    """A process that times what it is asked for. `request` sends one JSON object and returns the answer."""

    def __init__(self, python: str) -> None:
        command = [python, "-m", "benchmarks.models", "--worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def request(self, **fields: Any) -> Any:
        print(json.dumps(fields), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process for {fields} ended with status {self.process.wait()}; see above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """The worker: reads requests on standard input, answers on standard output, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    work: dict[str, subjects.Work] = {}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(work, **request)), file=answers, flush=True)


def _answer(work: dict[str, subjects.Work], do: str, name: str = "", **fields: Any) -> Any:
    if do == "time":
        return subjects.seconds(work[name])
    if do == "peer":
        return peer_versions()
    if do == "drop":
        work.clear()
        return True
    if do == "product":
        work[name] = subjects.matrix_product(**fields)
    else:  # "make"
        if fields["side"] == "ours":  # as the programs of the package do
            from vivit_jax.utils.devices import keep_freed_memory

            keep_freed_memory()
        work[name] = SIDES[fields.pop("side"), fields.pop("kind")](**fields)
    before = memory_now()  # weights are loaded, the program is compiled
    subjects.seconds(work[name])  # a warm-up
    return memory_peak() - before


def peer_versions() -> str | None:
    """Returns the versions of PyTorch and transformers, None where one is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def alternate(workers: Mapping[str, Worker], names: Mapping[str, str], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each name; `names` has {name: side of the worker that holds it}."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, side in names.items():
            times[name].append(workers[side].request(do="time", name=name))
    return {name: statistics.median(values) for name, values in times.items()}


def exponent(sizes: list[float], values: list[float]) -> float:
    """Returns p of the least-squares fit value ~ size^p, over the three largest sizes."""
    x, y = ([math.log(v) for v in series[-3:]] for series in (sizes, values))
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


class Run:
    """One call of the benchmark: its workers, options and results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.choices = {"attention_backend": options.backend} if options.backend else {}
        self.choices |= {"scan_layers": True} if options.scan else {}
        self.rows: list[dict[str, Any]] = []
        peer = Worker(options.peer_python)
        self.versions = peer.request(do="peer")
        self.workers = {"ours": Worker(sys.executable), "peer": peer}
        if self.versions is None:
            print("Hugging Face's rows are left out: they need the extra [parity], here or by --peer-python")
            self.workers.pop("peer").close()

    def python(self, side: str) -> str:
        return self.options.peer_python if side == "peer" else sys.executable

    def sides(self, model: str) -> list[str]:
        """The sides that have a model: Hugging Face has Model 1."""
        return [side for side in self.workers if side == "ours" or model == "Model 1"]

    def fields(self, model: str, dtype: str, side: str = "ours", **fields: Any) -> dict[str, Any]:
        choices = self.choices if side == "ours" else {}
        return {**CLIP, **subjects.MODELS[model], **self.options.sizes, **choices, "dtype": dtype, **fields}

    def add(self, part: str, name: str, dtype: str, **values: Any) -> None:
        row = {"part": part, "name": name, "dtype": dtype, **values}
        self.rows.append(row)
        figures = "  ".join(f"{key} {value:,.4g}" for key, value in values.items() if isinstance(value, float))
        goal = f"  (goal: {values['goal']})" if "goal" in values else ""
        print(f"{part:9}{name:34}{dtype:10}{figures}{goal}", flush=True)

    def make_products(self, dtype: str) -> dict[str, str]:
        """Prepares the matrix products in the workers and returns {name: side}."""
        names = {}
        for library, side in LIBRARIES.items():
            if side not in self.workers or (library == "numpy" and dtype != "float32"):
                continue
            for shape in self.options.products:
                name = f"{library} {' x '.join(map(str, shape))}"
                fields = {"library": library, "dtype": dtype, "shape": shape}
                self.workers[side].request(do="product", name=name, **fields)
                names[name] = side
        return names

    def forward(self, dtype: str) -> None:
        """Products and models in one alternation, so that shares of the product rate hold for this run."""
        names = self.make_products(dtype)
        products = list(names)
        for model in self.options.models:
            for side in self.sides(model):
                fields = self.fields(model, dtype, side)
                request = {"side": side, "kind": "forward", "fields": fields, "batch": 1}
                self.workers[side].request(do="make", name=f"{model}, {side}", **request)
                names[f"{model}, {side}"] = side
        seconds = alternate(self.workers, names, self.options.repeats)
        for name in products:
            m, k, n = map(int, name.split(maxsplit=1)[1].split(" x "))
            self.add("product", name, dtype, ms=1e3 * seconds[name], gflops=2e-9 * m * k * n / seconds[name])
        rates = {row["name"]: row["gflops"] for row in self.rows if row["part"] == "product" and row["dtype"] == dtype}
        rate = rates[next(name for name in rates if name.startswith("xla"))]  # that of the first shape
        for model in self.options.models:
            ours, theirs = seconds[f"{model}, ours"], seconds.get(f"{model}, peer")
            gflops = 1e-9 * subjects.operations(subjects.model_config(self.fields(model, dtype))) / ours
            values = {"ms": 1e3 * ours, "gflops": gflops, "share": gflops / rate}
            if theirs:
                values |= {"peer_ms": 1e3 * theirs, "ratio": theirs / ours}
            goal = {"float32": "ratio 1.15", "bfloat16": "ratio 1.25"}
            if model != "Model 1":
                goal = {"float32": "share 0.95", "bfloat16": "share 0.40"}
            self.add("forward", model, dtype, **values, goal=goal[dtype])
        for worker in self.workers.values():
            worker.request(do="drop")

    def peak(self, side: str, fields: Mapping[str, Any], repeats: int = 0) -> tuple[float, float]:
        """Returns (MiB over weights and program, median seconds or nan) of a forward pass in a fresh process."""
        worker = Worker(self.python(side))
        peak = worker.request(do="make", name="", side=side, kind="forward", fields=fields, batch=1)
        times = [worker.request(do="time", name="") for _ in range(repeats)]
        worker.close()
        return peak / 2**20, statistics.median(times) if times else math.nan

    def memory(self, dtype: str) -> None:
        for model in self.options.models:
            found = {side: self.peak(side, self.fields(model, dtype, side))[0] for side in self.sides(model)}
            values = {"mib": found["ours"]}
            if "peer" in found:
                values |= {"peer_mib": found["peer"], "ratio": found["ours"] / found["peer"], "goal": "ratio 0.33"}
            self.add("memory", model, dtype, **values)

    def train(self, dtype: str) -> None:
        sizes, names = {**subjects.SMALL, **self.options.sizes, "dtype": dtype}, {}
        for side, worker in self.workers.items():
            fields = sizes | (self.choices if side == "ours" else {})
            batch = subjects.SMALL_BATCH
            worker.request(do="make", name=side, side=side, kind="train", fields=fields, batch=batch)
            names[side] = side
        seconds = alternate(self.workers, names, self.options.repeats)
        values = {"ms": 1e3 * seconds["ours"]}
        if "peer" in seconds:
            values |= {
                "peer_ms": 1e3 * seconds["peer"],
                "ratio": seconds["peer"] / seconds["ours"],
                "goal": "ratio 1.8",
            }
        self.add("train", "small Model 1", dtype, **values)
        for worker in self.workers.values():
            worker.request(do="drop")

    def tokens(self, dtype: str) -> None:
        for model in self.options.models:
            series: dict[str, list[float]] = {"tokens": [], "flops": [], "ms": [], "mib": []}
            for frames in self.options.frames:
                fields = self.fields(model, dtype, num_frames=frames)
                mib, seconds = self.peak("ours", fields, repeats=3)
                config = subjects.model_config(fields)
                point = (math.prod(config.grid), subjects.operations(config), 1e3 * seconds, mib)
                for values, value in zip(series.values(), point, strict=True):
                    values.append(value)
                print(
                    f"tokens   {model}, {series['tokens'][-1]} tokens: {1e3 * seconds:,.0f} ms, {mib:,.0f} MiB",
                    flush=True,
                )
            fits = {f"{name}_exponent": exponent(series["tokens"], series[name]) for name in ("flops", "ms", "mib")}
            self.add("tokens", model, dtype, **fits, series=series)

    def parts(self) -> Iterator[tuple[str, str]]:
        return ((part, dtype) for part in self.options.parts for dtype in self.options.dtypes)


def write(path: Path, rows: list[dict[str, Any]], machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Adds rows to a JSON file, in the place of those with the same part, name and dtype; returns all rows."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["part"], row["name"], row["dtype"]

    old = json.loads(path.read_text())["rows"] if path.exists() else []
    replaced = {key(row) for row in rows}
    rows = [row for row in old if key(row) not in replaced] + rows
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return rows


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws time and peak memory against tokens, with the fitted exponents and those of the multiply-adds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    rows = [row for row in rows if row["part"] == "tokens"]
    ticks = sorted({tokens for row in rows for tokens in row["series"]["tokens"]})
    for row in rows:
        series = row["series"]
        for axis, name in zip(axes, ("ms", "mib"), strict=True):
            label = f"{row['name']}: {row[f'{name}_exponent']:.2f}"
            label += f" (operations: {row['flops_exponent']:.2f})" if name == "ms" else ""
            axis.loglog(series["tokens"], series[name], marker="o", label=label)
    for axis, title in zip(axes, ("ms for one clip", "peak memory over the weights, MiB"), strict=True):
        axis.set(title=title, xlabel="tokens")
        axis.set_xticks(ticks, [str(tokens) for tokens in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(title="exponent of the last three")
    figure.savefig(path, dpi=100)


def _words(text: str, known: tuple[str, ...]) -> list[str]:
    words = text.split(",")
    if unknown := set(words) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is not one of {', '.join(known)}")
    return words


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, known in (("parts", PARTS), ("dtypes", DTYPES), ("models", tuple(subjects.MODELS))):
        choices = f"comma-separated, of {', '.join(known)}; default: all"
        parser.add_argument(
            f"--{flag}", type=lambda text, known=known: _words(text, known), default=known, help=choices
        )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", help="attention backend; default: the models' default")
    parser.add_argument("--scan", action="store_true", help="scan_layers=True; default: the models' default")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has the extra [parity]")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, help="picture for the part `tokens` of the results, e.g. tokens.png")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return argparse.Namespace(**vars(options), sizes={}, products=PRODUCTS, frames=FRAMES)  # tests use smaller ones


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the parts asked for and returns the rows, with those that `--out` had."""
    import jax
    import numpy

    run = Run(options)
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": sys.version.split()[0], "jax": jax.__version__}
    machine |= {"numpy": numpy.__version__, "peer": run.versions, "repeats": options.repeats}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for part, dtype in run.parts():
        getattr(run, part)(dtype)
    for worker in run.workers.values():
        worker.close()
    rows = write(options.out, run.rows, machine) if options.out else run.rows
    if options.plot:
        plot(options.plot, rows)
    return rows


def cpu_name() -> str:
    """Returns the name of this CPU where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    chosen = parse(None)
    if chosen.worker:
        serve()
    else:
        run(chosen)
