"""Masked pretraining of a small Model 2's spatial encoder on single frames of the embedded data set, without labels.

VideoMAE (arXiv:2203.12602) with one frame in place of a clip, which is MAE (arXiv:2111.06377).

    python -m vivit_jax.main --config=configs/pretrain_mae.py --workdir=runs/pretrained

`benchmarks/pretraining.py` fine-tunes a Model 2 from it on 300 labelled videos, and compares it with others.
Own videos, a folder of them with or without labels: --config.data.name=NAME --config.data.video_dir=FOLDER, and a model
and clips that fit them, e.g. --config.model.name=ViViT-S/16x2 --config.model.image_size=112 (docs/training.md).

Hardware: one CPU core, 16 minutes.
Expected on the held-out videos: masked loss 0.0068 (seed 0); guessing each frame's mean colour has 0.018.
"""

from vivit_jax.config.experiment import default_config


def get_config():
    config = default_config()
    config.data.name = "moving_digits"
    config.data.cache = True

    config.pretrain.mask_ratio = 0.75
    config.pretrain.decoder_layers = 2
    config.pretrain.normalise_pixels = False  # normalised, most of the loss is the texture behind the digit

    config.model.attention = "factorised_encoder"
    config.model.classifier = "gap"
    config.model.hidden_size = 96
    config.model.num_heads = 3
    config.model.mlp_dim = 384
    config.model.num_layers = 3
    config.model.temporal_layers = 0
    config.model.num_frames = 1
    config.model.image_size = 56
    config.model.tubelet_size = (1, 7, 7)

    config.input.stride = 2
    config.input.random_crop = True

    config.batch_size = 32
    config.num_epochs = 160.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.weight_decay = 0.05

    config.evaluation.every_epochs = 40.0
    config.evaluation.batch_size = 32
    config.checkpoint.every_steps = 1000
    config.checkpoint.best_metric = "loss"
    config.log_every_steps = 100
    return config
