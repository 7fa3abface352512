"""`benchmarks.device` at small sizes on a CPU: results, budget, errors, goals; and the bytes of a program by part."""

import json
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import agreement, device, device_plan, traffic
from benchmarks.device_plan import MODEL_1, MODEL_2, Row
from tests.conftest import REPOSITORY
from tests.helpers.small_models import small_config
from vivit_jax.models import attention_backends

# The modules that a GPU machine may lack are blocked.
PROGRAM = """
import sys
for name in ("clu", "etils", "ml_collections", "orbax", "tensorflow", "tensorflow_datasets", "torch", "scipy"):
    sys.modules[name] = None
import json, pathlib
from benchmarks import device
from benchmarks.device_plan import *
rows = [
    Row("train", MODEL_1, 2, RESIDUAL),
    Row("forward", MODEL_2, 1),
    Row("train", MODEL_4, 2, RESIDUAL | SCAN | {"remat": "dots"}),
    Row("forward", MODEL_1, 2, CUDNN),
]
for parts, count in (("profile", 2), ("speed,kernels", 4)):
    options = device.parse(["--out", f"{sys.argv[1]}/{parts}", "--minutes=4", f"--parts={parts}"])
    options.sizes, options.product, options.lengths = json.loads(sys.argv[2]), (64, 64, 64), (1, 17)
    device.run(options, rows[:count])
"""


@pytest.fixture
def sizes():
    fields = ("hidden_size", "num_heads", "num_layers", "mlp_dim", "num_frames", "image_size", "num_classes")
    config = small_config().to_dict()
    return {"name": None, "tubelet_size": config["tubelet_size"]} | {field: config[field] for field in fields}


def options(tmp_path, sizes, minutes):
    chosen = device.parse(["--out", str(tmp_path), f"--minutes={minutes}", "--parts=speed"])
    chosen.sizes, chosen.product = sizes, (64, 64, 64)
    return chosen


def test_runs_without_the_training_extra_and_writes_every_row(tmp_path, sizes):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(sizes)],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "speed,kernels" / "device.json").read_text())
    assert found["skipped"] == []
    *measured, refused = sorted(found["rows"], key=lambda row: "error" in row)
    assert len(measured) == 3
    assert all(row["ms"] > 0 and row["mfu"] > 0 and row["gib"] > 0 for row in measured)
    assert "cudnn" in refused["error"], "the row of a backend that the device lacks has the reason"
    verdicts = {(row["backend"], row["tokens"]): row["verdict"] for row in found["kernels"]}
    assert verdicts["xla", 17] == verdicts["tiled", 17] == verdicts["xla", 1] == "agrees"
    assert verdicts["cudnn", 17] == "refused"
    [profile] = json.loads((tmp_path / "profile" / "device.json").read_text())["profiles"]
    parts = {part["part"]: part for part in profile["parts"]}
    assert {"LayerNorm", "attention", "dense: products", "optimizer, guard, norms"} <= set(parts)
    assert parts["LayerNorm"]["bytes"] > 0
    assert parts["LayerNorm"]["seconds"] > 0
    assert profile["row"]["kind"] == "train"
    assert "MFU, train ViViT-B/16x2 Model 1" in done.stdout.splitlines()[-11], "the goals come last"


def test_names_the_rows_that_the_budget_leaves_out(tmp_path, sizes):
    rows = [Row("forward", MODEL_1, 1), Row("train", MODEL_2, 2)]
    found = device.run(options(tmp_path, sizes, minutes=0), rows)
    assert [text.split(" (")[0] for text in found["skipped"]] == [row.label for row in rows]
    assert json.loads((tmp_path / "device.json").read_text())["skipped"] == found["skipped"]


def test_peers_that_take_too_long_keep_their_first_rows(tmp_path, sizes):
    python = tmp_path / "python"
    row = {"kind": "train", "batch": 8, "compiled": False, "ms": 9.0, "clips_per_second": 3.0, "label": "train"}
    python.write_text(f"#!/bin/sh\necho 'a warning'\necho '{json.dumps(row)}'\nsleep 300\n")
    python.chmod(0o755)
    chosen = options(tmp_path, sizes, minutes=0.2)
    chosen.peer_python, began = str(python), time.perf_counter()
    bench = device.Bench(chosen)
    bench.peers()
    assert time.perf_counter() - began < 60
    assert bench.results["peers"] == [row]
    assert bench.results["skipped"] == ["the rest of Hugging Face's rows"]


def test_out_of_memory_is_a_row_and_the_others_go_on(tmp_path, sizes, monkeypatch):
    def build(row, sizes):
        if row.batch == 32:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 44 GiB")
        return original(row, sizes)

    original = device.build
    monkeypatch.setattr(device, "build", build)
    found = device.run(options(tmp_path, sizes, 4), [Row("forward", MODEL_1, 32), Row("forward", MODEL_1, 1)])
    by_batch = {row["batch"]: row for row in found["rows"]}
    assert by_batch[32]["error"] == "out of memory"
    assert by_batch[1]["ms"] > 0


def test_goals_take_the_best_row_and_the_same_batch_as_the_peer():
    def row(kind, batch, ms, mfu, name="ViViT-B/16x2"):
        return Row(kind, MODEL_1, batch, {}, name)._asdict() | {"ms": ms, "mfu": mfu}

    rows = [row("train", 8, 60.0, 0.5), row("train", 16, 100.0, 0.56), row("forward", 1, 2.5, 0.4)]
    rows += [row("train", 8, 300.0, 0.4, "ViViT-L/16x2"), Row("forward", MODEL_2, 1)._asdict() | {"error": "x"}]
    peers = [{"kind": "train", "batch": 8, "compiled": False, "ms": 90.0}, {"error": "left out"}]
    lines = {line.split(" goal ")[0].strip(): line for line in device_plan.goals({"rows": rows, "peers": peers})}
    assert "56 %, reached" in lines["MFU, train ViViT-B/16x2 Model 1"]
    assert "40 %, missed" in lines["MFU, train ViViT-L/16x2 Model 1"]
    assert "2.5 ms, reached" in lines["one clip's forward pass, ViViT-B Model 1"]
    assert "not measured" in lines["one clip's forward pass, ViViT-B Model 2"]
    assert "1.5, missed" in lines["train batch 8, times Hugging Face eager"]


def test_rows_of_the_plan_are_distinct_and_valid():
    rows = device_plan.plan()
    assert len({row.label for row in rows}) == len(rows)
    for row in rows:
        device.subjects.model_config({"name": row.name, **device_plan.CLIP, **row.options})


@pytest.mark.parametrize("length", agreement.LENGTHS[:4])
def test_agreement_tells_padding_with_a_mask_from_padding_without(length, monkeypatch):
    monkeypatch.setattr(attention_backends, "CUDNN_IMPLEMENTATION", "xla")

    def unmasked(q, k, v, *_):
        q, k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]) for x in (q, k, v))
        return attention_backends.xla_attention(q, k, v)[..., :length, :]

    backends = {"cudnn": attention_backends.cudnn_attention, "unmasked": unmasked}
    found = agreement.errors(backends, length, dtype="float32")
    assert max(found["cudnn"].values()) < 1e-5
    assert max(found["unmasked"].values()) > 1e-3


def test_oracle_has_the_gradients_of_attention():
    rng = np.random.default_rng(0)
    *qkv, cotangent = rng.standard_normal((4, 2, 3, 5, 8))
    with jax.enable_x64(True):
        out, backward = jax.vjp(attention_backends.xla_attention, *map(jnp.asarray, qkv))
        expected = (out, *backward(jnp.asarray(cotangent)))
        for x, y in zip(agreement.oracle(*qkv, cotangent), expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_bytes_of_kernels_are_the_compilers():
    def layer(x, weights):
        return jax.nn.relu(x @ weights).sum(0)

    arguments = jnp.ones((64, 128)), jnp.ones((128, 256))
    compiled = jax.jit(jax.grad(lambda *a: layer(*a).sum(), argnums=(0, 1))).lower(*arguments).compile()
    kernels = traffic.kernels(compiled.as_text())
    expected = compiled.cost_analysis()["bytes accessed"]
    assert sum(kernel.bytes for kernel in kernels) == pytest.approx(expected, rel=0.02)


HLO = """HloModule m

%sliced (p.0: f32[12,100], p.1: s32[]) -> f32[100] {
  %p.0 = f32[12,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,100}
}

%body (state: (s32[], f32[12,100])) -> (s32[], f32[12,100]) {
  %state = (s32[], f32[12,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[12,100]{1,0} get-tuple-element(%state), index=1
  %norm.1 = f32[1,100]{1,0} fusion(%stack, %i), calls=%sliced, metadata={op_name="jit(f)/jvp(M)/norm_mlp/mul"}
  ROOT %out = (s32[], f32[12,100]{1,0}) tuple(%i, %stack)
}

%product (p.2: f32[12,100]) -> (bf16[100,12], s8[64]) {
  %p.2 = f32[12,100]{1,0} parameter(0)
  ROOT %custom-call.7 = (bf16[100,12]{1,0}, s8[64]{0}) custom-call(%p.2), custom_call_target="__cublas$lt$matmul", \
metadata={op_name="jit(f)/transpose(jvp(M))/mlp/dense_in/transpose"}
}

ENTRY %main (a: f32[12,100]) -> f32[12,100] {
  %a = f32[12,100]{1,0} parameter(0)
  %fused.3 = (bf16[100,12]{1,0}, s8[64]{0}) fusion(%a), kind=kCustom, calls=%product
  %start = (s32[], f32[12,100]{1,0}) tuple(%a, %a)
  %loop = (s32[], f32[12,100]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %update.2 = bf16[12,100]{1,0} convert(%a), metadata={op_name="jit(f)/convert"}
}
"""


def test_kernels_of_a_loop_count_each_trip_and_slices_as_slices():
    kernels = {kernel.name: kernel for kernel in traffic.kernels(HLO)}
    assert kernels["norm.1"] == ("norm.1", "LayerNorm", 12 * (400 + 400 + 4), 12)
    assert kernels["update.2"] == ("update.2", "optimizer, guard, norms", 4800 + 2400, 1)
    assert kernels["custom-call.7"][:2] == ("custom-call.7", "dense: products")  # as the profiler names it
    rows = traffic.by_part(list(kernels.values()), {"norm_1": 2e-3, "library_kernel": 1e-3})
    assert [(row["part"], row["seconds"]) for row in rows][:2] == [
        ("LayerNorm", 2e-3),
        ("not matched, e.g. library_kernel", 1e-3),
    ]


def test_times_of_kernels_are_read_from_the_devices_streams(monkeypatch):
    def event(name, ns, **stats):
        return types.SimpleNamespace(name=name, duration_ns=ns, stats=list(stats.items()))

    def line(name, *events):
        return types.SimpleNamespace(name=name, events=events)

    stream = line("Stream #1(Compute)", event("gemm", 600, hlo_op="dot.3"), event("fusion_1", 300))
    planes = [
        types.SimpleNamespace(name="/device:GPU:0", lines=[line("XLA Modules", event("jit_f", 9000)), stream]),
        types.SimpleNamespace(name="/host:CPU", lines=[line("python", event("dot.3", 7000))]),
    ]
    profile = types.SimpleNamespace(from_file=lambda file: types.SimpleNamespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", profile)
    times = traffic.kernel_times(lambda: jnp.zeros(3).block_until_ready(), steps=3)
    assert times == {"dot_3": pytest.approx(2e-7), "fusion_1": pytest.approx(1e-7)}
