"""Table 4, regularisation added row by row: Model 2, ViViT-B, on EPIC-Kitchens-100.

    python -m vivit_jax.main --config=configs/paper/table4.py:crop_flip_colour --workdir=gs://BUCKET/table4_crop \\
        --config.init_from.path=VIT_B_16
    python -m vivit_jax.main --config=configs/paper/table4.py:mixup --workdir=gs://BUCKET/table4_mixup \\
        --config.init_from.path=gs://BUCKET/table2_model2

VIT_B_16 holds the weights of a ViT-B/16 trained on ImageNet-21k, for the first row; the others start from a run of
Model 2 on Kinetics-400 (configs/paper/table2.py:model2). Without a path a row starts from scratch, and the first two
are the same.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold every row, docs/tpu_paper.md how. The cores of
another slice must divide the batch of 64.
Published: action top-1 38.4, 39.6, 40.2, 41.1, 43.1, 43.7 with 4 x 1 views; the last is Model 2 of Table 2. The
strengths are those of the appendix. The table begins with colour jitter and takes nothing away, while the appendix
has none for EPIC-Kitchens. These rows follow the table, with Kinetics' probabilities; the appendix's recipe is
configs/paper/table2.py:model2_epic100, or this with --config.augment.colour_jitter_probability=0
--config.augment.grayscale_probability=0.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "crop_flip_colour": "random crop, flip, colour jitter: 38.4",
    "kinetics": "+ initialised from Kinetics-400: 39.6",
    "stochastic_depth": "+ stochastic depth, 0.2: 40.2",
    "rand_augment": "+ RandAugment, 2 layers at 15: 41.1",
    "label_smoothing": "+ label smoothing, 0.2: 43.1",
    "mixup": "+ mixup, 0.1: 43.7",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    config = recipes.published("epic_kitchens100", "ViViT-B/16x2", "factorised_encoder")
    config.augment.colour_jitter_probability = 0.8
    config.augment.grayscale_probability = 0.1
    # The recipe has them all: off with what the table adds only later.
    later = list(ROWS)[list(ROWS).index(row) + 1 :]
    if "stochastic_depth" in later:
        config.model.stochastic_depth_rate = 0.0
    if "rand_augment" in later:
        config.augment.rand_augment_layers = 0
    if "label_smoothing" in later:
        config.label_smoothing = 0.0
    if "mixup" in later:
        config.augment.mixup = 0.0
    return config


def sweep():
    return {row: get_config(row) for row in ROWS}
