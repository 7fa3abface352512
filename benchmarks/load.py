"""Measures loading of a ViViT-B/16x2 by file format: seconds and peak memory, beside Hugging Face's `from_pretrained`.

    python benchmarks/load.py [--repeats=5]

A random checkpoint (356 MB) is written in every format to a temporary folder; PyTorch's format and `from_pretrained`
need the extra `[parity]`. Each is loaded in a fresh process, alternating within each repeat, so that noise of the
machine affects all. Measurements start after the imports and end when every number was read once, because
`from_pretrained` maps the file without reading it. Peak is the increase of the process's memory, relative to the file
size.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

BUDGET = "under 3 s and 2.2 file sizes"


def memory_now() -> int:
    """Returns the bytes of this process and resets its peak where the system supports that."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free, but not given back, would not count when it is used
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:  # not Linux, or not allowed: only the peak since the start is known
        return memory_peak()


def memory_peak() -> int:
    """Returns the peak bytes of this process, since `memory_now` where the system supports that."""
    try:
        return _status("VmHWM")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(loader: str, path: str) -> None:
    """Loads once in this process and prints seconds and peak bytes as JSON."""
    if loader == "vivit_jax":
        import jax

        from vivit_jax.convert import load_model as load

        def numbers(loaded):
            return jax.tree.leaves(loaded[1])
    else:
        # Not needed here; its import fails if it was built for another build of PyTorch.
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        from transformers import VivitForVideoClassification

        load = VivitForVideoClassification.from_pretrained

        def numbers(loaded):
            return [leaf.detach() for leaf in loaded.parameters()]

    before = memory_now()
    start = time.perf_counter()
    loaded = load(path)
    for leaf in numbers(loaded):
        leaf.sum()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": memory_peak() - before}))


def write_all(folder: pathlib.Path) -> dict[str, tuple[str, pathlib.Path, pathlib.Path]]:
    """Writes the checkpoint in every format and returns {row: (loader, path for the loader, file)}."""
    import jax

    from vivit_jax.convert import save_params
    from vivit_jax.models import ViViTConfig, abstract_params

    config = ViViTConfig.from_name("ViViT-B/16x2", num_classes=400)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), abstract_params(config))
    save_params(params, folder / "hf", "huggingface", config)
    save_params(params, folder / "checkpoint_0", "scenic", config)
    save_params(params, folder / "weights.npz", "scenic", config)
    safetensors = folder / "hf" / "model.safetensors"
    rows = {
        "safetensors (Hugging Face)": ("vivit_jax", folder / "hf", safetensors),
        "msgpack (Scenic)": ("vivit_jax", folder / "checkpoint_0", folder / "checkpoint_0"),
        "npz": ("vivit_jax", folder / "weights.npz", folder / "weights.npz"),
    }
    try:
        import torch
        import transformers  # noqa: F401
        from safetensors.torch import load_file
    except ImportError:
        print("PyTorch's format and from_pretrained are left out: they need the extra [parity]")
        return rows
    pickled = folder / "hf_bin" / "pytorch_model.bin"
    pickled.parent.mkdir()
    torch.save(load_file(safetensors), pickled)
    (pickled.parent / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
    rows["PyTorch .bin (Hugging Face)"] = ("vivit_jax", pickled.parent, pickled)
    rows["from_pretrained, safetensors"] = ("transformers", folder / "hf", safetensors)
    rows["from_pretrained, .bin"] = ("transformers", pickled.parent, pickled)
    return rows


def main() -> None:
    """Writes the files, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # Loading runs on the host: no accelerator is needed.
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if arguments.measure:
        measure(*arguments.measure)
        return
    with tempfile.TemporaryDirectory(prefix="vivit_jax_load_") as folder:
        rows = write_all(pathlib.Path(folder))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for repeat in range(arguments.repeats + 1):
            for name, (loader, path, _) in rows.items():
                command = [sys.executable, __file__, "--measure", loader, str(path)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                if repeat:  # the first fills the page cache
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
        sizes = {name: file.stat().st_size for name, (_, _, file) in rows.items()}

    seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
    theirs = seconds.get("from_pretrained, safetensors")
    print(f"ViViT-B/16x2, medians of {arguments.repeats} loads in fresh processes; budget: {BUDGET}")
    print(f"{'':30} {'MB':>6} {'s':>7} {'slowest':>8} {'peak / size':>12} {'s / from_pretrained':>20}")
    for name, runs in found.items():
        peak = statistics.median(run["peak"] for run in runs) / sizes[name]
        slowest = max(run["seconds"] for run in runs)
        ratio = f"{seconds[name] / theirs:.2f}" if theirs else ""
        print(f"{name:30} {sizes[name] / 1e6:6.0f} {seconds[name]:7.2f} {slowest:8.2f} {peak:12.2f} {ratio:>20}")


if __name__ == "__main__":
    main()
