"""Compares multi-view evaluation with the forward pass of a training batch: clips per second and temporary memory.

    python -m benchmarks.evaluation                                                   # a small model, for CPUs
    python -m benchmarks.evaluation --model=ViViT-B/16x2 --attention=spatiotemporal   # clips of 32 x 224 x 224, GPUs

Evaluation takes uint8 views, 4 x 3 of each video, in batches of some videos: one view after another, and in the groups
that `train_step.map_views` makes of them. All programs alternate within each repeat; times are medians. Needs JAX and
Flax alone.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vivit_jax.models import ViViT, ViViTConfig, inference
from vivit_jax.train_step import make_eval_step, normalise

# Of the size of configs/moving_digits.py.
SMALL = {
    "hidden_size": 96, "num_layers": 2, "num_heads": 3, "mlp_dim": 384, "temporal_layers": 2, "num_frames": 16,
    "image_size": 56, "tubelet_size": (4, 14, 14),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, or a name such as ViViT-B/16x2")
    parser.add_argument("--attention", default="factorised_encoder")
    parser.add_argument("--backend", help="attention backend; default: the model's")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64, help="clips of the training batch")
    parser.add_argument("--videos", type=int, nargs="+", default=[64, 16, 4, 1], help="videos of an evaluation batch")
    parser.add_argument("--clips", type=int, nargs="+", help="clips at once; default: 1 and the model's own number")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args(arguments)

    # Model and parameters.
    fields = {"attention": options.attention, "num_classes": 400}
    fields |= {"attention_backend": options.backend} if options.backend else {}
    model = options.model
    config = ViViTConfig(**SMALL, **fields) if model == "small" else ViViTConfig.from_name(model, **fields)
    config = inference.inference_config(config, options.dtype)
    model = ViViT(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *config.video_shape)))["params"]
    params = inference.cast_params(params, config)

    # Programs: {name: (compiled, video, clips)}.
    def compiled(function, *shape):
        video = jax.random.bits(jax.random.key(1), (*shape, *config.video_shape), jnp.uint8)
        return inference.jit(function, config).lower(params, video).compile(), video, int(np.prod(shape))

    def forward(params, video):
        return model.apply({"params": params}, normalise(video), train=True, rngs={"dropout": jax.random.key(0)})

    programs = {f"forward, {options.batch} clips": compiled(forward, options.batch)}
    for videos in options.videos:
        for clips in options.clips or (1, inference.clips_at_once(config)):
            step = make_eval_step(model.apply, clips)
            programs[f"{videos} x {options.views} views, {clips} clips at once"] = compiled(
                lambda params, video, step=step: step(params, {"video": video}), videos, options.views
            )

    # Times.
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(options.repeats + 1):
        for name, (program, video, _) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(params, video))
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    rows, reference = [], None
    device = jax.devices()[0].device_kind
    print(
        f"{options.model} {config.attention} {config.dtype}, jax {jax.__version__}, {device}, {options.repeats} repeats"
    )
    print(f"{'':36} {'clips/s':>9} {'of forward':>10} {'temporary MiB':>14}")
    for name, (program, _, clips) in programs.items():
        rate = clips / statistics.median(seconds[name])
        reference = reference or rate
        mib = program.memory_analysis().temp_size_in_bytes / 2**20
        rows.append({"program": name, "clips_per_second": rate, "of_forward": rate / reference, "temporary_mib": mib})
        print(f"{name:36} {rate:9.1f} {rate / reference:10.2f} {mib:14.1f}")
    if options.json:
        result = {"device": device, "jax": jax.__version__, "model": config.to_dict(), "rows": rows}
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
