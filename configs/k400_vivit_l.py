"""ViViT-L/16x2, Model 1, on Kinetics-400: the published recipe (the paper's appendix; Tables 5 and 6).

    python -m vivit_jax.main --config=configs/k400_vivit_l.py --workdir=gs://BUCKET/k400_vivit_l

Hardware: the authors trained on Cloud TPU v3; a batch of 64 clips of 32 x 224 x 224.
Published: 80.6 / 94.7 top-1 / top-5 with 4 x 3 views, initialised from ImageNet-21k (Table 6).
The data are not ours to give: see docs/data.md for what to fetch. Without them the command says what it looked for.
"""

from vivit_jax.experiment import default_config


def get_config():
    config = default_config()
    config.data.name = "kinetics400"

    config.model.name = "ViViT-L/16x2"
    config.model.attention = "spatiotemporal"
    config.model.num_frames = 32
    config.model.image_size = 224
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = "full"

    config.input.stride = 2
    config.input.short_side = 256
    config.input.random_crop = True
    config.input.scale_jitter = (0.9, 1.33)
    config.input.flip = 0.5

    config.batch_size = 64
    config.num_epochs = 30.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.warmup_epochs = 2.5
    config.optimizer.clip_norm = 1.0

    config.evaluation.temporal_views = 4
    config.evaluation.spatial_views = 3
    config.evaluation.every_epochs = 5.0
    config.evaluation.batch_size = 16
    return config
