"""Table 1, input encoding: uniform frame sampling against three starts of the tubelet embedding (Model 1, ViViT-B).

    python -m vivit_jax.main --config=configs/paper/table1.py:central_frame --workdir=gs://BUCKET/table1_central \\
        --config.init_from.path=VIT_B_16

VIT_B_16 holds the weights of a ViT-B/16 trained on ImageNet-21k, for every row: the rows differ in how the patch
embedding of the image model becomes that of the video model. Without a path all tubelet rows are one and the same,
from scratch.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold every row, docs/tpu_paper.md how. The cores of
another slice must divide the batch of 64.
Published: Kinetics-400 top-1, 78.5 / 73.2 / 77.6 / 79.2 in the order of the rows. Open, and chosen here: frame
sampling takes one frame in two, which makes as many tokens as the tubelets do; 4 x 3 views.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "uniform_frames": "uniform frame sampling: 78.5",
    "random": "tubelet embedding, initialised at random: 73.2",
    "filter_inflation": "tubelet embedding, filter inflation (eq. 8): 77.6",
    "central_frame": "tubelet embedding, central frame (eq. 9): 79.2",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    config = recipes.published("kinetics400", "ViViT-B/16x2", "spatiotemporal")
    if row == "uniform_frames":
        config.model.tokenizer = "uniform_frames"
    else:
        config.init_from.embedding = row
    return config


def sweep():
    return {row: get_config(row) for row in ROWS}
