"""Measures compilation time, and by the compiler the work and traffic of several devices. No step is run.

    python benchmarks/compile.py scan      # scan over layers against unrolled layers, ViViT-L/16x2
    python benchmarks/compile.py start     # first start against second, with the compilation cache
    python benchmarks/compile.py scaling   # 1, 2, 4, 8 devices with the same clips each: work and traffic of a device

The variants of `scan` and `start` alternate, each compilation in a fresh process; ratios are of medians. `scaling`
cannot be timed on one machine, whose virtual devices share its cores: it reports operations and bytes of one device.
Weak scaling is ideal if a device has the same operations as a single device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

MODEL = {"name": "ViViT-L/16x2", "attention": "spatiotemporal", "dtype": "bfloat16", "remat": "full"}
SMALL = {"hidden_size": 192, "num_heads": 4, "mlp_dim": 768, "num_layers": 4, "num_frames": 8, "image_size": 128}


def child(fields: dict, devices: int, clips: int, axes: dict, cache: str | None) -> dict:
    """Compiles a training step in this process and returns the seconds and the work and traffic of one device."""
    began = time.time()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    jax.config.update("jax_platforms", "cpu")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
    from vivit_jax.compile import hlo
    from vivit_jax.compile.program import Target
    from vivit_jax.config.experiment import Experiment, default_config

    config = default_config()
    for name, value in fields.items():
        config.model[name] = value
    config.mesh.update(axes)
    target = Target.on(Experiment.from_config(config), {"label": 400}, jax.devices())
    lowered = target.lower_train(clips)
    traced = time.time()
    compiled = lowered.compile()
    done = time.time()
    cost = compiled.cost_analysis()
    traffic = hlo.collectives(compiled.as_text(), dict(target.mesh.shape))
    return {
        "import and trace": traced - began,
        "compile": done - traced,
        "start to program": done - began,
        "operations": cost["flops"],
        "traffic": [[one.kind, one.axis, one.dtype, one.bytes] for one in traffic],
    }


def spawn(**arguments: object) -> dict:
    """Runs `child` in a subprocess."""
    done = subprocess.run(
        [sys.executable, __file__, "child", json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def scan(repeats: int) -> None:
    times: dict[bool, list[dict]] = {True: [], False: []}
    for _ in range(repeats):
        for scanned, found in times.items():
            fields = MODEL | {"scan_layers": scanned}
            found.append(spawn(fields=fields, devices=1, clips=1, axes={}, cache=None))
    medians = {s: statistics.median(f["compile"] for f in found) for s, found in times.items()}
    print(f"{MODEL['name']}, training step, {repeats} repeats, medians")
    ratio = medians[True] / medians[False]
    print(f"  compile: scan {medians[True]:.1f} s, unrolled {medians[False]:.1f} s, ratio {ratio:.2f}")
    whole = {s: statistics.median(f["start to program"] for f in found) for s, found in times.items()}
    print(f"  start to program: scan {whole[True]:.1f} s, unrolled {whole[False]:.1f} s")


def start(repeats: int) -> None:
    first, second = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for found in (first, second):
                fields = MODEL | {"scan_layers": False}
                found.append(spawn(fields=fields, devices=1, clips=1, axes={}, cache=cache))
    for what in ("compile", "start to program"):
        one, two = (statistics.median(f[what] for f in found) for found in (first, second))
        print(f"{MODEL['name']}, unrolled, {what}: first start {one:.1f} s, second {two:.1f} s, ratio {two / one:.2f}")


def scaling(repeats: int) -> None:
    del repeats  # the compiler is deterministic
    clips = 2
    for title, shape in (
        ("data parallel", lambda n: {"data": n}),
        ("fsdp", lambda n: {"data": 1, "fsdp": n}),
        ("sequence", lambda n: {"data": 1, "sequence": n}),
    ):
        single = None
        for devices in (1, 2, 4, 8):
            figures = spawn(fields=SMALL, devices=devices, clips=clips, axes=shape(devices), cache=None)
            single = single or figures["operations"]
            # With the same clips on each device the work is constant; one batch over n devices should take 1/n.
            ideal = single / devices if title == "sequence" else single
            sent = ", ".join(
                f"{kind} {size / 2**20:.1f} MiB {dtype}" for kind, _, dtype, size in figures["traffic"][:3]
            )
            share = ideal / figures["operations"]
            work = f"{figures['operations'] / 1e9:7.2f} GFLOP per device, {share:.0%} of ideal"
            print(f"{title:22} {devices} devices: {work}; {sent}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["scan", "start", "scaling", "child"])
    parser.add_argument("arguments", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.part == "child":
        print(json.dumps(child(**json.loads(options.arguments))))
    else:
        {"scan": scan, "start": start, "scaling": scaling}[options.part](options.repeats)


if __name__ == "__main__":
    main()
