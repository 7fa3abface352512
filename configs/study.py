"""The study: the experiments of Tables 1 to 4 and of Figures 8 and 9 on the embedded data set.

    python benchmarks/study.py --workdir=runs/study --seeds=0,1,2
    python -m vivit_jax.sweep --config=configs/study.py --workdir=runs/study --rows='model[12]$'
    python -m vivit_jax.main --config=configs/study.py --workdir=runs/study_model1

`benchmarks/study.py` runs all rows and writes docs/study.md; `--rows` selects some. All models have width 96 and 3
layers (Model 2: 3 + 2). The video models start from `image_model` and train for 20 epochs on the same videos.
Hardware: two CPU cores; about three hours for three seeds, the rows that explain others with one.
Expected on the held-out videos: docs/study.md.
"""

from vivit_jax.config.experiment import default_config

# Single frames; a frame costs a sixteenth of a clip. It can learn the digit (noun); no frame shows a motion (verb).
IMAGE_MODEL = {
    "model.num_frames": 1,
    "model.tubelet_size": (1, 14, 14),
    "num_epochs": 64.0,
    "optimizer.learning_rate": 1.5e-3,
    "checkpoint.best_metric": "noun/top1",
}
FROM_IMAGES = {"init_from.path": "{workdir}/image_model/seed_{seed}"}
# A vector for each time, about as long as a token; PUBLISHED_POSITIONS are rows without it.
TIMES = {"model.temporal_position_std": 2.0}
MODEL1 = {**FROM_IMAGES, **TIMES, "model.attention": "spatiotemporal"}
MODEL4 = {**FROM_IMAGES, **TIMES, "model.attention": "factorised_dot_product"}
AVERAGE_POOL = {**FROM_IMAGES, "model.attention": "factorised_encoder", "model.temporal_layers": 0}
MODEL2 = {**AVERAGE_POOL, **TIMES, "model.temporal_layers": 2}
# 300 training videos, an eighth; as many steps as the others.
FEW = {**MODEL2, "data.subset.fraction": 0.125, "num_epochs": 160.0, "evaluation.temporal_views": 4}
# Table 4's regularisers, each added to those before it. A flip turns a motion into another, whose label it then gets.
REGULARISERS = {
    "few_none": {"init_from.path": None, "input.random_crop": False},
    "few_crop_flip_colour": {
        "input.random_crop": True,
        "input.flip_probability": 0.5,
        "input.flip_labels": "swap",
        "augment.colour_jitter_probability": 0.8,
        "augment.grayscale_probability": 0.1,
    },
    # With the same learning rate in all layers, 300 videos make the image model forget the digits.
    "few_image_model": {**FROM_IMAGES, "optimizer.layer_decay": 0.75},
    # Published: 0.2, with more layers.
    "few_stochastic_depth": {"model.stochastic_depth_rate": 0.1},
    # Published: two layers of magnitude 15 on frames of 224. Cutout's square does not shrink with the frame: at 3 it is
    # 24 pixels wide. Below 2.5 Posterize leaves nothing of a clip.
    "few_rand_augment": {"augment.rand_augment_layers": 1, "augment.rand_augment_magnitude": 3.0},
    "few_label_smoothing": {"label_smoothing": 0.2},
    "few_mixup": {"augment.mixup": 0.1},
}

# Constant tokens, as Figure 9 has them: the tubelet grows with the clip. Every frame, so that the longest is the video.
CLIPS = {"input.stride": 1, "evaluation.temporal_views": 4, **MODEL2}
COMPARED = {
    "image_model": IMAGE_MODEL,
    # Table 2, and Table 3 with the average-pool baseline as 0 and Model 2 as 2 temporal layers.
    "model1": MODEL1,
    "model2": MODEL2,
    "model3": {**FROM_IMAGES, **TIMES, "model.attention": "factorised_self_attention"},
    "model4": MODEL4,
    "average_pool": AVERAGE_POOL,
    "average_pool_uniform_frames": {**AVERAGE_POOL, "model.tokenizer": "uniform_frames"},
    "temporal_layers_1": {**MODEL2, "model.temporal_layers": 1},
    "temporal_layers_4": {**MODEL2, "model.temporal_layers": 4},
    # Table 1; model1 is its row of the central frame.
    "uniform_frames": {**MODEL1, "model.tokenizer": "uniform_frames"},
    "tubelet_random": {**MODEL1, "init_from.embedding": "random"},
    "tubelet_filter_inflation": {**MODEL1, "init_from.embedding": "filter_inflation"},
    # Figure 8: tubelets of 4 and of 16 frames; those of 8 are the rows of Table 2.
    "model1_t4": {**MODEL1, "model.tubelet_size": (4, 14, 14)},
    "model1_t16": {**MODEL1, "model.tubelet_size": (16, 14, 14)},
    "model2_t4": {**MODEL2, "model.tubelet_size": (4, 14, 14)},
    "model2_t16": {**MODEL2, "model.tubelet_size": (16, 14, 14)},
    # Figure 9
    "frames_8": {**CLIPS, "model.num_frames": 8, "model.tubelet_size": (4, 14, 14)},
    "frames_16": {**CLIPS, "model.num_frames": 16, "model.tubelet_size": (8, 14, 14)},
    "frames_32": {**CLIPS, "model.num_frames": 32, "model.tubelet_size": (16, 14, 14)},
    # Do more steps explain why Models 1 and 4 are behind Model 3, and more frames uniform frame sampling?
    "model1_long": {**MODEL1, "num_epochs": 60.0},
    "model4_long": {**MODEL4, "num_epochs": 60.0},
    "uniform_frames_t4": {**MODEL1, "model.tokenizer": "uniform_frames", "model.tubelet_size": (4, 14, 14)},
}
# Section 3.4 to the letter: the positions of an image model are repeated, so that all times start equal.
PUBLISHED_POSITIONS = ("model1", "model2", "model3", "model4", "uniform_frames")


def get_config():
    config = default_config().lock()
    config.data.name = "moving_digits"
    config.data.cache = True

    config.model.attention = "spatiotemporal"
    config.model.classifier = "gap"
    config.model.hidden_size = 96
    config.model.num_heads = 4
    config.model.mlp_dim = 384
    config.model.num_layers = 3
    config.model.num_frames = 16
    config.model.image_size = 56
    config.model.tubelet_size = (8, 14, 14)

    config.input.stride = 2
    config.input.random_crop = True

    config.batch_size = 32
    config.num_epochs = 20.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.1

    config.init_from.embedding = "central_frame"
    config.init_from.head = "reinit"  # also where the classes are the same
    config.evaluation.temporal_views = 2
    config.evaluation.spatial_views = 1
    config.evaluation.every_epochs = 0.0
    config.evaluation.batch_size = 32
    config.checkpoint.every_steps = 100_000  # at the end alone
    config.checkpoint.best_metric = "action/top1"
    config.log_every_steps = 25
    return config


def sweep():
    rows, regularised = dict(COMPARED), FEW
    for row in PUBLISHED_POSITIONS:
        rows[f"{row}_published"] = {**COMPARED[row], "model.temporal_position_std": 0.0}
    for row, added in REGULARISERS.items():
        regularised = {**regularised, **added}
        rows[row] = regularised
    # Do the regularisers need more steps?
    for row in ("few_image_model", "few_mixup"):
        rows[f"{row}_long"] = {**rows[row], "num_epochs": 480.0}
    return rows
