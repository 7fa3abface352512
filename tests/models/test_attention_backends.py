"""Every attention backend against eq. 7 in float64 NumPy, with gradients; on a GPU or TPU its kernel, elsewhere what
surrounds the kernel: padding and masking, with the kernel interpreted (TPU) or replaced by XLA's (GPU).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.models import ViViT, ViViTConfig, abstract_params, attention_backends
from vivit_jax.models.attention_backends import BACKENDS
from vivit_jax.models.attention_choice import Attention, Device, choose_backend

CPU, TPU = Device("cpu"), Device("tpu", "TPU v4")
GPU = Device("gpu", "NVIDIA H100 80GB HBM3", "9.0")
CAP = 2.0


@pytest.fixture(autouse=True)
def replaced_kernels(monkeypatch):
    monkeypatch.setattr(attention_backends, "QUERIES_PER_TILE", 100)  # 197 tokens: two tiles, the last one padded
    if jax.default_backend() != "gpu":
        monkeypatch.setattr(attention_backends, "CUDNN_IMPLEMENTATION", "xla")
    if jax.default_backend() != "tpu":
        monkeypatch.setattr(attention_backends, "SPLASH_INTERPRET", True)


def oracle(q, k, v, cotangent, cap=None):
    """Eq. 7 and its gradients by hand, float64 [..., N, head_dim]: (out, dq, dk, dv)."""
    scale = 1 / np.sqrt(q.shape[-1])
    logits = scale * q @ k.swapaxes(-1, -2)
    slope = 1.0
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
        slope = 1 - (logits / cap) ** 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dv = weights.swapaxes(-1, -2) @ cotangent
    dweights = cotangent @ v.swapaxes(-1, -2)
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * slope
    return weights @ v, scale * dlogits @ k, scale * dlogits.swapaxes(-1, -2) @ q, dv


def assert_matches_oracle(backend, tokens, dtype="float32", cap=None, heads=2):
    if backend == "splash" and jax.default_backend() == "gpu":
        pytest.skip("kernels for TPUs are interpreted on CPUs only")
    shape = (2, heads, tokens, 16) if tokens < 1000 else (heads, tokens, 16)
    rng = np.random.default_rng(tokens)
    inputs = [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]
    expected = oracle(*(np.asarray(x, np.float64) for x in inputs), cap)

    @jax.jit
    @jax.default_matmul_precision("float32")  # a GPU rounds factors to TF32 by default
    def run(q, k, v, cotangent):
        out, vjp = jax.vjp(lambda q, k, v: BACKENDS[backend](q, k, v, logit_cap=cap), q, k, v)
        return out, *vjp(cotangent)

    for name, x, y in zip(("out", "dq", "dk", "dv"), run(*inputs), expected, strict=True):
        assert x.dtype == dtype, name
        # Relative to the largest value. In bfloat16 kernels round the weights, and jax's XLA attention the logits too.
        tolerance = {"float32": 1e-5, "bfloat16": 4e-2 if backend == "cudnn" else 2e-2}[dtype]
        atol = tolerance * max(abs(y).max(), 0.1)
        np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("tokens", [1, 16, 17, 197])
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_equation_7(backend, tokens):
    assert_matches_oracle(backend, tokens, "bfloat16")
    if backend != "cudnn" or jax.default_backend() != "gpu":
        assert_matches_oracle(backend, tokens)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_equation_7_at_3137_tokens(backend):
    """The tokens of ViViT-B/16x2, Model 1."""
    assert_matches_oracle(backend, 3137, "bfloat16" if backend == "cudnn" else "float32", heads=1)


@pytest.mark.parametrize("backend", ["xla", "tiled", "splash"])
def test_matches_equation_7_with_logit_cap(backend):
    assert_matches_oracle(backend, 197, cap=CAP)


@pytest.mark.parametrize(
    ("device", "attention", "frames", "fields", "lengths"),
    [
        (GPU, "spatiotemporal", 4, {}, {20}),  # 19 tokens
        (GPU, "spatiotemporal", 42, {}, {192}),  # 190 tokens: a multiple of 16 adds little
        (GPU, "factorised_encoder", 4, {"image_size": 32}, {18, 4}),  # 17 tokens of a frame, 3 in time
        (GPU, "factorised_dot_product", 6, {}, {10, 3}),  # 9 tokens of a frame, 3 frames
        (GPU, "spatiotemporal", 4, {"dropout_rate": 0.2}, {19}),  # its masks depend on the shape
        (TPU, "spatiotemporal", 28, {}, {128}),  # 127 tokens: a block of the kernel
        (TPU, "spatiotemporal", 42, {}, {192}),
        (Device("tpu", "TPU v3"), "spatiotemporal", 42, {}, {192}),
    ],
)
def test_model_on_accelerators_matches_equation_7(device, attention, frames, fields, lengths, monkeypatch):
    """Padding in all layers, on GPUs three products and the layout: against `xla` without them."""
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "mlp_dim": 48, "num_classes": 3}
    clip = {"num_frames": frames, "image_size": 24, "tubelet_size": (2, 8, 8)}
    config = ViViTConfig(**{**sizes, **clip, **fields}, attention=attention)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), abstract_params(config))
    video = jnp.asarray(rng.uniform(-1, 1, (2, *config.video_shape)), jnp.float32)

    def value_and_gradients():
        def loss(params):
            rngs = {"dropout": jax.random.key(1)}
            logits = ViViT(config).apply({"params": params}, video, train=True, rngs=rngs)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected = value_and_gradients()
    seen, name = set(), "cudnn" if device.platform == "gpu" else "splash"

    def attend(query, key, value, *, backend=BACKENDS[name], **options):
        seen.add(key.shape[-2])
        return backend(query, key, value, **options)

    for module in ("attention", "attention_backends", "blocks"):
        monkeypatch.setattr(f"vivit_jax.models.{module}.target_device", lambda: device)
    monkeypatch.setattr("vivit_jax.models.attention.choose_backend", lambda *_: name)
    monkeypatch.setitem(BACKENDS, name, attend)
    for x, y in zip(*map(jax.tree.leaves, (value_and_gradients(), expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(float(abs(y).max()), 1.0))
    assert seen == lengths


@pytest.mark.parametrize(
    ("device", "tokens", "dtype", "expected"),
    [
        (GPU, 3137, "bfloat16", "cudnn"),
        (GPU, 197, "bfloat16", "cudnn"),
        (GPU, 17, "bfloat16", "xla"),
        (GPU, 3137, "float32", "xla"),
        (TPU, 3137, "bfloat16", "splash"),
        (TPU, 3137, "float32", "splash"),
        (TPU, 16, "bfloat16", "xla"),
        (CPU, 3137, "float32", "xla"),
        (Device("cpu", jax_version=(0, 10, 2)), 3137, "float32", "tiled"),
        (Device("cpu", jax_version=(0, 11)), 197, "float32", "xla"),
    ],
)
def test_auto_takes_the_fastest(device, tokens, dtype, expected):
    assert choose_backend("auto", Attention(tokens, 64, dtype), device) == expected


def test_auto_takes_tiles_on_cpus_with_gradients():
    assert choose_backend("auto", Attention(3137, 64, "bfloat16", training=True), CPU) == "tiled"
    assert choose_backend("auto", Attention(197, 64, "bfloat16", training=True), CPU) == "xla"


@pytest.mark.parametrize(
    ("fields", "device", "reason"),
    [
        ({"dropout": True}, GPU, "dropout"),
        ({"logit_cap": True}, GPU, "attention_logit_cap"),
        ({"head_dim": 20}, GPU, "multiple of 8"),
        ({}, Device("gpu", "Tesla V100", "7.0"), "8.0 or higher, Tesla V100 has 7.0"),
        ({}, Device("gpu", "AMD Instinct MI300X", "gfx942"), "NVIDIA"),
        ({"dropout": True}, TPU, "dropout"),
    ],
)
def test_auto_passes_over_a_backend_and_logs_why(fields, device, reason, caplog):
    attention = Attention(**{"keys": 3137, "head_dim": 64, "dtype": "bfloat16", **fields})
    with caplog.at_level("INFO", logger="absl"):
        assert choose_backend("auto", attention, device) == "xla"
    named = "cudnn" if device.platform == "gpu" else "splash"
    with pytest.raises(ValueError, match=f"attention_backend='{named}' .*{reason}.*use attention_backend='auto'"):
        choose_backend(named, attention, device)
    assert re.search(f"{named} is passed over: .*{reason}", caplog.text)


@pytest.mark.parametrize("named", ["cudnn", "splash"])
def test_named_backend_is_refused_on_other_devices(named):
    with pytest.raises(ValueError, match=f"attention_backend='{named}' needs .* the devices are cpu"):
        choose_backend(named, Attention(3137, 64, "bfloat16"), CPU)


@pytest.mark.parametrize(
    ("backend", "platform", "kernels"),
    [("cudnn", "cuda", {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}), ("splash", "tpu", {"tpu_custom_call"})],
)
def test_kernels_lower_for_their_platform(backend, platform, kernels, monkeypatch):
    """With gradients, at an odd length, on a machine without the device."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(attention_backends, "CUDNN_IMPLEMENTATION", "cudnn")
    monkeypatch.setattr(attention_backends, "SPLASH_INTERPRET", False)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # no cuDNN here
    shape = jax.ShapeDtypeStruct((2, 12, 197, 64), jnp.bfloat16)

    def loss(q, k, v):
        return BACKENDS[backend](q, k, v).astype(jnp.float32).sum()

    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels]
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    exported = jax.export.export(gradients, platforms=(platform,), disabled_checks=checks)(shape, shape, shape)
    assert set(re.findall(r"custom_call @([\w$]+)\(", exported.mlir_module())) == kernels
