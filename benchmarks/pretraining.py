"""Masked pretraining against training from scratch: 300 labelled videos of the embedded data set, 2,400 without labels.

    python -m vivit_jax.sweep --config=benchmarks/pretraining.py --workdir=runs/pretraining --seeds=0,1,2

Rows: `scratch` trains the quickstart's model on an eighth of the videos; `pretrained` is masked pretraining on all of
them, without labels; `finetuned` is `scratch` started from it; `pixels` and `finetuned_pixels` the same with pixels
that are not normalised. docs/training.md has the results.
Hardware: two CPU cores; 6,300 steps of 32 clips for each seed.
"""

from vivit_jax.config.experiment import default_config

FEW = {"data.subset.fraction": 0.125, "num_epochs": 64.0, "optimizer.b2": 0.999, "optimizer.weight_decay": 0.1}
PRETRAINING = {
    "pretrain.mask_ratio": 0.75,
    "pretrain.decoder_layers": 2,
    "num_epochs": 40.0,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 0.05,
    "checkpoint.best_metric": "loss",
}


def get_config():
    config = default_config().lock()
    config.data.name = "moving_digits"
    config.data.cache = True

    config.model.attention = "factorised_encoder"
    config.model.classifier = "gap"
    config.model.hidden_size = 96
    config.model.num_heads = 3
    config.model.mlp_dim = 384
    config.model.num_layers = 3
    config.model.temporal_layers = 2
    config.model.num_frames = 16
    config.model.image_size = 56
    config.model.tubelet_size = (8, 14, 14)

    config.input.stride = 2
    config.input.random_crop = True

    config.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_epochs = 1.0

    config.evaluation.temporal_views = 2
    config.evaluation.spatial_views = 1
    config.evaluation.every_epochs = 0.0
    config.evaluation.batch_size = 32
    config.checkpoint.best_metric = "action/top1"
    config.log_every_steps = 50
    return config


def sweep():
    pixels = {**PRETRAINING, "pretrain.normalise_pixels": False, "num_epochs": 20.0}
    return {
        "scratch": FEW,
        "pretrained": PRETRAINING,
        "finetuned": {**FEW, "init_from.path": "{workdir}/pretrained/seed_{seed}"},
        "pixels": pixels,
        "finetuned_pixels": {**FEW, "init_from.path": "{workdir}/pixels/seed_{seed}"},
    }
