"""Masked pretraining against training from scratch: 300 labelled videos of the embedded data set, 2,400 without labels.

    python -m vivit_jax.sweep --config=benchmarks/pretraining.py --workdir=runs/pretraining --seeds=0,1,2

Rows: `scratch` trains the quickstart's model on an eighth of the videos; `pretrained` is masked pretraining on all of
them, without labels; `finetuned` is `scratch` started from it; `pixels` and `finetuned_pixels` the same with pixels
that are not normalised. docs/training.md has the results.
Hardware: two CPU cores; 6,300 steps of 32 clips for each seed.
"""

from vivit_jax.config.flags import load_config

FEW = {
    "data.subset.fraction": 0.125,
    "num_epochs": 64.0,
    "pretrain.mask_ratio": 0.0,
    "optimizer.b2": 0.999,
    "optimizer.warmup_epochs": 1.0,
    "optimizer.weight_decay": 0.1,
    "checkpoint.best_metric": "action/top1",
}


def get_config():
    config = load_config("pretrain_mae")
    config.model.temporal_layers = 2  # of the classifiers
    config.model.tubelet_size = (4, 7, 7)  # larger tubelets cannot be predicted from their neighbours
    config.evaluation.temporal_views = 2
    config.evaluation.spatial_views = 1
    config.evaluation.every_epochs = 0.0  # at the end only
    return config


def sweep():
    return {
        "scratch": FEW,
        "pretrained": {},
        "finetuned": {**FEW, "init_from.path": "{workdir}/pretrained/seed_{seed}"},
        "pixels": {"pretrain.normalise_pixels": False, "num_epochs": 20.0},
        "finetuned_pixels": {**FEW, "init_from.path": "{workdir}/pixels/seed_{seed}"},
    }
