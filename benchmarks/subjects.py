"""What the benchmarks of models time: our models, Hugging Face's ViViT, train steps of both, and matrix products.

Each builder returns a `Work`, which `seconds` times. jax and PyTorch are imported where they are used: a process that
times one does not load the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """`launch()` starts the work once and returns its result; `wait(result)` waits until all of it is done."""

    launch: Callable[[], Any]
    wait: Callable[[Any], Any]


MODELS: Mapping[str, Mapping[str, Any]] = {
    "Model 1": {"attention": "spatiotemporal"},
    "Model 2": {"attention": "factorised_encoder"},
    "Model 3": {"attention": "factorised_self_attention"},
    "Model 4": {"attention": "factorised_dot_product"},
    "average pooling": {"attention": "factorised_encoder", "temporal_layers": 0},
}
# Of the train step on a CPU: Model 1 with 393 tokens, four clips.
SMALL = {
    "hidden_size": 384,
    "num_heads": 6,
    "num_layers": 12,
    "mlp_dim": 1536,
    "num_frames": 16,
    "image_size": 112,
    "num_classes": 400,
}
SMALL_BATCH = 4


def model_config(fields: Mapping[str, Any]) -> Any:
    """Returns the `ViViTConfig` of some fields, `name` (of the paper) among them, or all sizes."""
    from vivit_jax.models import ViViTConfig

    fields = dict(fields)
    name = fields.pop("name", None)
    return ViViTConfig.from_name(name, **fields) if name else ViViTConfig.from_dict(fields)


def operations(config: Any) -> float:
    """Returns the operations of all matrix products of one clip's forward pass, two for a multiply-add."""
    from vivit_jax.models.flops import matrix_products

    return 2.0 * sum(matrix_products(config).values())


def our_params(config: Any) -> Any:
    """Returns random parameters; the time does not depend on their values, as long as these are normal numbers."""
    import jax

    from vivit_jax.models import abstract_params

    noise = 0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)
    return jax.tree.map(lambda x: np.resize(noise, x.shape), abstract_params(config))


def inference_params(config: Any) -> Any:
    """Returns random parameters on the device, as predictions take them: cast once, on GPUs each layer apart."""
    import jax

    from vivit_jax.models import inference

    params = inference.cast_params(jax.device_put(our_params(config)), config)
    return jax.block_until_ready(inference.unstacked(params, config))


def random_clips(config: Any, batch: int) -> np.ndarray:
    """Returns pixels of `batch` clips, uint8 [B, T, H, W, C]."""
    return np.random.default_rng(0).integers(0, 256, (batch, *config.video_shape), np.uint8)


def our_forward(fields: Mapping[str, Any], batch: int) -> Work:
    """Returns our forward pass of a batch of random clips, compiled."""
    import jax
    import jax.numpy as jnp

    from vivit_jax.models import ViViT, inference

    config = model_config(fields)
    params = inference_params(config)
    video = jax.block_until_ready(jnp.asarray(random_clips(config, batch) / np.float32(127.5) - 1))
    program = inference.jit(ViViT(config).apply, config).lower({"params": params}, video).compile()
    return Work(lambda: program({"params": params}, video), jax.block_until_ready)


def train_program(config: Any) -> Any:
    """Returns the project's train step as configured by default: SGD, momentum 0.9, clipping at norm 1, guard."""
    import optax

    from vivit_jax.models import ViViT
    from vivit_jax.optim import OptimizerConfig, make_optimizer
    from vivit_jax.train_step import build_train_program

    schedule = optax.constant_schedule(0.01)
    return build_train_program(ViViT(config), make_optimizer(OptimizerConfig(), schedule), schedule)


def train_arguments(program: Any, batch: int) -> tuple[Any, Any]:
    """Returns the state before the first step and a batch, on the host."""
    import jax

    from vivit_jax.train_step import SINGLE_HEAD

    config = program.model.config
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.state).replace(params=our_params(config))
    label = np.arange(batch, dtype=np.int32) % config.num_classes
    clips = {"video": random_clips(config, batch), "label": {SINGLE_HEAD: label}, "mask": np.ones(batch, np.float32)}
    return state, clips


def our_train_step(fields: Mapping[str, Any], batch: int) -> Work:
    """Returns our train step on one batch, compiled; each call takes the state of the one before."""
    import jax

    program = train_program(model_config(fields))
    state, clips = jax.device_put(train_arguments(program, batch))
    step = program.step.lower(state, clips).compile()

    def launch() -> Any:
        nonlocal state
        state, metrics = step(state, clips)
        return state, metrics

    return Work(launch, jax.block_until_ready)


def peer_model(fields: Mapping[str, Any], device: str = "cpu") -> Any:
    """Returns Hugging Face's ViViT of the same sizes as Model 1, with PyTorch's fused attention (SDPA)."""
    import sys

    import torch

    try:
        import torchvision  # noqa: F401 (transformers imports it where it is installed)
    except Exception:  # it was built for another build of PyTorch; ViViT does without
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    from transformers import VivitConfig, VivitForVideoClassification

    config = model_config(fields)
    torch.manual_seed(0)
    sizes = VivitConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        num_frames=config.num_frames,
        image_size=config.image_size,
        tubelet_size=list(config.tubelet_size),
        num_labels=config.num_classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    return VivitForVideoClassification(sizes).to(device)


def _peer_video(fields: Mapping[str, Any], batch: int, device: str) -> Any:
    import torch

    config = model_config(fields)
    clips = random_clips(config, batch) / np.float32(127.5) - 1
    return torch.from_numpy(np.moveaxis(clips, -1, 2).copy()).to(device)  # [B, T, C, H, W]


def _waiting(launch: Callable[[], Any], device: str) -> Work:
    import torch

    return Work(launch, lambda _: None if device == "cpu" else torch.cuda.synchronize())


def peer_forward(fields: Mapping[str, Any], batch: int, device: str = "cpu", compiled: bool = False) -> Work:
    """Returns Hugging Face's forward pass, with weights and clips in the dtype of `fields`."""
    import torch

    dtype = getattr(torch, fields.get("dtype", "float32"))
    model = peer_model(fields, device).eval().to(dtype)
    video = _peer_video(fields, batch, device).to(dtype)
    forward = torch.compile(model) if compiled else model

    def launch() -> None:
        with torch.inference_mode():
            forward(pixel_values=video)

    return _waiting(launch, device)


def peer_train_step(fields: Mapping[str, Any], batch: int, device: str = "cpu", compiled: bool = False) -> Work:
    """Returns Hugging Face's train step: forward (autocast to the dtype of `fields`), backward, clipping, SGD."""
    import torch

    dtype = getattr(torch, fields.get("dtype", "float32"))
    model = peer_model(fields, device).train()
    forward = torch.compile(model) if compiled else model
    video = _peer_video(fields, batch, device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def launch() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = forward(pixel_values=video, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _waiting(launch, device)


def matrix_product(library: str, dtype: str, shape: tuple[int, int, int], device: str = "cpu") -> Work:
    """Returns the product [m, k] x [k, n] of `xla`, `numpy` or `pytorch`; shape is (m, k, n)."""
    m, k, n = shape
    if library == "pytorch":
        import torch

        a, b = (torch.randn(size, device=device).to(getattr(torch, dtype)) for size in ((m, k), (k, n)))
        return _waiting(lambda: a @ b, device)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(size, np.float32) for size in ((m, k), (k, n)))
    if library == "numpy":
        return Work(lambda: x @ y, lambda _: None)
    import jax
    import jax.numpy as jnp

    left, right = (jnp.asarray(array).astype(dtype) for array in (x, y))
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return Work(lambda: product(left, right), jax.block_until_ready)


def seconds(work: Work, calls: int = 1) -> float:
    """Returns the seconds of one call, in a row of calls that is waited for at its end."""
    start = time.perf_counter()
    for _ in range(calls):
        result = work.launch()
    work.wait(result)
    return (time.perf_counter() - start) / calls
