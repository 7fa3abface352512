"""Times the guard's judgement of the update: train steps with it and without, in turn; medians of the paired ratios.

    python -m benchmarks.guard --steps=12 --optimizer=adamw

Without it a step is judged by loss and gradient alone, before the update. The model is small in tokens for its
parameters, so that the update is a larger part of the step than in training.
"""

import statistics
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags

from vivit_jax import optim
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.train_step import build_train_program, guard, step

_STEPS = flags.DEFINE_integer("steps", 12, "Pairs of steps.")
_OPTIMIZER = flags.DEFINE_string("optimizer", "adamw", "sgd, adamw, lamb or lion.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers of the encoder, of width 512.")


def main(_) -> None:
    size = {"hidden_size": 512, "num_heads": 8, "mlp_dim": 2048, "num_layers": _LAYERS.value, "num_classes": 400}
    config = ViViTConfig(**size, num_frames=8, image_size=64, tubelet_size=(2, 16, 16))
    options = optim.OptimizerConfig(name=_OPTIMIZER.value, warmup_epochs=0)
    schedule = optim.learning_rate_schedule(options, total_steps=10**6, steps_per_epoch=1e3, batch_size=64)
    batch = {
        "video": np.random.default_rng(0).integers(0, 256, (8, *config.video_shape), dtype=np.uint8),
        "label": {"label": np.arange(8, dtype=np.int32)},
        "mask": np.ones(8, np.float32),
    }

    def build(check):
        """A compiled step, its state, and the seconds of its runs."""
        with mock.patch.object(step, "check_step", check):
            program = build_train_program(ViViT(config), optim.make_optimizer(options, schedule), schedule)
            state = jax.jit(lambda key: _state(program, key))(jax.random.key(0))
            compiled = program.step.lower(state, batch).compile()
        analysis = compiled.memory_analysis()
        print(f"temporaries {analysis.temp_size_in_bytes / 2**20:.0f} MiB", flush=True)
        return [compiled, state, []]

    runs = [build(lambda config, state, *judged: guard.check_step(config, state, *judged[:2])), build(guard.check_step)]
    for number in range(_STEPS.value + 1):
        for run in runs if number % 2 else runs[::-1]:
            began = time.perf_counter()
            run[1], _ = jax.block_until_ready(run[0](run[1], batch))
            run[2].append(time.perf_counter() - began)
    without, judged = (run[2][1:] for run in runs)
    ratio = statistics.median(new / old for old, new in zip(without, judged, strict=True))
    medians = [f"{1e3 * statistics.median(seconds):.1f} ms" for seconds in (without, judged)]
    print(f"{_OPTIMIZER.value}: {medians[0]} a step without, {medians[1]} with; median of the ratios {ratio:.4f}")


def _state(program, key):
    params = program.model.init(key, np.zeros((1, *program.model.config.video_shape), np.float32))["params"]
    return step.TrainState.create(params, program.optimizer)


if __name__ == "__main__":
    app.run(main)
