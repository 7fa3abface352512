"""A small Model 2 on the embedded data set: 8 motions (verb) of handwritten digits (noun). The quickstart's config.

    python -m vivit_jax.main --config=configs/moving_digits.py --workdir=runs/moving_digits

First trains an image model of the same width on single frames, in WORKDIR/image_model, from which the video model
starts (section 3.4, central frame); --config.init_from.image_epochs=0.0 trains from scratch.

Hardware: two CPU cores, about five minutes. Expected on the held-out videos, from three seeds: verb top-1 98.4 ± 0.9 %,
noun 92.9 ± 1.1 %, action 91.5 ± 0.5 %.
"""

from vivit_jax.config.experiment import default_config


def get_config():
    config = default_config()
    config.data.name = "moving_digits"
    config.data.cache = True

    config.init_from.image_epochs = 48.0
    config.init_from.embedding = "central_frame"

    config.model.attention = "factorised_encoder"
    config.model.classifier = "gap"  # the average of a frame's tokens learns motions sooner than a class token
    config.model.hidden_size = 96
    config.model.num_heads = 3
    config.model.mlp_dim = 384
    config.model.num_layers = 3
    config.model.temporal_layers = 2
    config.model.num_frames = 16
    config.model.image_size = 56
    config.model.tubelet_size = (8, 14, 14)

    # The motions fill about 32 frames; no flips, which would turn a motion into its opposite.
    config.input.stride = 2
    config.input.random_crop = True  # 56 of the 64 pixels

    config.batch_size = 32
    config.num_epochs = 20.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.1

    config.evaluation.temporal_views = 2
    config.evaluation.spatial_views = 1
    config.evaluation.every_epochs = 10.0
    config.evaluation.batch_size = 32
    config.checkpoint.every_steps = 300
    config.checkpoint.best_metric = "action/top1"
    config.log_every_steps = 25
    return config
