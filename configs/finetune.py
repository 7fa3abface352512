"""Trains on a custom data set of 100 to 10,000 videos, of any length and size, with or without pretrained weights.

    python -m vivit_jax.main --config=configs/finetune.py --workdir=RUN --config.data.video_dir=FOLDER
    python -m vivit_jax.main --config=configs/finetune.py --workdir=RUN --config.data.video_dir=FOLDER \\
        --config.init_from.path=WEIGHTS

FOLDER has a folder for each class, or videos and a CSV (docs/data.md). WEIGHTS: an image model, a ViViT, a VideoMAE, or
the checkpoint of another run; without them, a small model learns from scratch. docs/finetuning.md is a walk-through.

Model, clips, length of the run, learning rate and evaluation follow from the data and the weights
(`vivit_jax.config.finetuning`); the log shows them, and values that are given win. The rest is below. Sources:
VideoMAE (arXiv:2203.12602) and its script for UCF101 (github.com/MCG-NJU/VideoMAE, scripts/ucf101): AdamW, weight decay
0.05, 100 epochs, layer-wise decay 0.7, stochastic depth 0.2, label smoothing 0.1, mixup 0.8; ViViT (table 4 and the
appendix): stochastic depth, mixup 0.1 to 0.3 and label smoothing for Epic Kitchens and Something-Something.

Hardware: from scratch two CPU cores; with a ViT-B or larger, an accelerator.
Expected on the held-out videos: 76 % on synthetic lip movements from scratch, chance 10 % (docs/finetuning.md).
"""

from ml_collections import config_dict

from vivit_jax.config import finetuning
from vivit_jax.config.experiment import default_config
from vivit_jax.config.fields import field_of


def get_config():
    config = default_config()
    config.derive = True
    for path in finetuning.DERIVED:  # left open: None, of the field's type
        section, name = field_of(config, path)
        kind = int if path == "input.short_side" else type(section[name])
        del section[name]
        section[name] = config_dict.placeholder(kind)
    config.data.cache = True

    config.input.random_crop = True
    config.input.scale_jitter = (0.9, 1.2)
    config.input.flip_probability = 0.5
    config.input.flip_labels = "swap"  # classes whose names tell left from right are exchanged, or not flipped

    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.05
    config.label_smoothing = 0.1
    config.augment.mix_per_example = True
    config.model.stochastic_depth_rate = 0.1
    return config
