"""Times the augmentations on the device for a batch of clips, median milliseconds.

    python -m benchmarks.augment [--batch=32] [--frames=16] [--size=56] [--repeats=9]

They alternate, so that noise of the machine affects all of them. The default batch is that of the quickstart.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from vivit_jax.augment import augment_pixels, mix_clips
from vivit_jax.augment.config import AugmentConfig
from vivit_jax.utils.devices import keep_freed_memory

PIXELS = {
    "colours, Kinetics recipe": {"colour_jitter_probability": 0.8, "grayscale_probability": 0.1},
    "RandAugment, 2 layers": {"rand_augment_layers": 2},
    "RandAugment, 2 layers, ops=video": {"rand_augment_layers": 2, "rand_augment_ops": "video"},
    "random erasing": {"erase_probability": 0.25},
}
MIXTURES = {"mixup": {"mixup": 0.3}, "cutmix": {"cutmix": 1.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 32, "frames": 16, "size": 56, "repeats": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if jax.default_backend() == "cpu":  # as training does
        keep_freed_memory()
    shape = options.batch, options.frames, options.size, options.size, 3
    video = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    mask = jax.device_put(np.ones(options.batch, np.float32))

    def pixels(key: jax.Array, config: AugmentConfig) -> jax.Array:
        return augment_pixels(key, video, config)

    def mixtures(key: jax.Array, config: AugmentConfig) -> jax.Array:
        return mix_clips(key, video.astype("float32"), mask, config)[0]

    programs = {}
    for function, settings in ((pixels, PIXELS), (mixtures, MIXTURES)):
        for name, fields in settings.items():
            jitted = jax.jit(functools.partial(function, config=AugmentConfig(**fields)))
            programs[name] = jitted.lower(jax.random.key(0)).compile()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for step in range(options.repeats + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(jax.random.key(step)))
            if step:  # the first is a warm-up
                times[name].append(1e3 * (time.perf_counter() - begin))
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, uint8 [{', '.join(map(str, shape))}]")
    for name, milliseconds in times.items():
        print(f"  {name:34} {statistics.median(milliseconds):8.1f} ms")


if __name__ == "__main__":
    main()
