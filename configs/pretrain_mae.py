"""Masked pretraining of a small Model 2 on the embedded data set, without its labels (VideoMAE, arXiv:2203.12602).

    python -m vivit_jax.main --config=configs/pretrain_mae.py --workdir=runs/pretrained
    python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/digits \
        --config.init_from.image_epochs=0.0 --config.init_from.path=runs/pretrained

Own videos, a folder of them with or without labels: --config.data.name=NAME --config.data.video_dir=FOLDER, and a model
and clips that fit them, e.g. --config.model.name=ViViT-S/16x2 --config.model.image_size=112 (docs/training.md).

Hardware: two CPU cores, about ten minutes (estimated from the CPU time of 400 steps).
Expected on the held-out videos: masked loss 0.96 after 400 steps (--config.num_steps=400, seed 0); guessing each
tubelet's mean has 1.
"""

from vivit_jax.config.experiment import default_config


def get_config():
    config = default_config()
    config.data.name = "moving_digits"
    config.data.cache = True

    config.pretrain.mask_ratio = 0.75
    config.pretrain.decoder_layers = 2

    # As in configs/moving_digits.py; the temporal encoder is not pretrained.
    config.model.attention = "factorised_encoder"
    config.model.classifier = "gap"
    config.model.hidden_size = 96
    config.model.num_heads = 3
    config.model.mlp_dim = 384
    config.model.num_layers = 3
    config.model.num_frames = 16
    config.model.image_size = 56
    config.model.tubelet_size = (8, 14, 14)

    config.input.stride = 2
    config.input.random_crop = True

    config.batch_size = 32
    config.num_epochs = 40.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.weight_decay = 0.05

    config.evaluation.every_epochs = 10.0
    config.evaluation.batch_size = 32
    config.checkpoint.every_steps = 300
    config.checkpoint.best_metric = "loss"
    config.log_every_steps = 25
    return config
