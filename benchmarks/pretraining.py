"""Masked pretraining against training from scratch: 300 labelled videos of the embedded data set, 2,400 without labels.

    python -m vivit_jax.sweep --config=benchmarks/pretraining.py --workdir=runs/pretraining --seeds=0,1,2

Rows: `scratch` trains Model 2 on an eighth of the videos. `finetuned` starts from `pretrained`, masked pretraining of
its spatial encoder on frames of all videos, without their labels; `finetuned_image` from `image_model`, which learns
from the labels of all 2,400 videos. docs/training.md has the results.
Hardware: one CPU core, about 37 minutes for each seed.
"""

from vivit_jax.config.flags import load_config

LABELS = {
    "pretrain.mask_ratio": 0.0,
    "optimizer.b2": 0.999,
    "optimizer.warmup_epochs": 1.0,
    "optimizer.weight_decay": 0.1,
    "checkpoint.best_metric": "action/top1",
}
# Colours and textures say nothing about the digit, but identify 300 videos: without strong changes of colour the model
# learns them by heart.
FEW = {
    **LABELS,
    "model.num_frames": 16,
    "model.tubelet_size": (8, 7, 7),
    "model.temporal_layers": 2,
    "data.subset.fraction": 0.125,
    "num_epochs": 64.0,
    "augment.colour_jitter_probability": 1.0,
    "augment.grayscale_probability": 0.5,
    "optimizer.learning_rate": 2e-3,
}
STARTED = {**FEW, "optimizer.layer_decay": 0.75, "init_from.embedding": "central_frame", "init_from.head": "reinit"}


def get_config():
    config = load_config("pretrain_mae")
    config.evaluation.temporal_views = 2
    config.evaluation.spatial_views = 1
    config.evaluation.every_epochs = 0.0  # at the end only
    config.checkpoint.every_steps = 100_000
    config.log_every_steps = 25
    return config


def sweep():
    return {
        "scratch": FEW,
        "pretrained": {},
        "finetuned": {**STARTED, "init_from.path": "{workdir}/pretrained/seed_{seed}"},
        "image_model": {**LABELS, "num_epochs": 48.0, "checkpoint.best_metric": "noun/top1"},
        "finetuned_image": {**STARTED, "init_from.path": "{workdir}/image_model/seed_{seed}"},
    }
