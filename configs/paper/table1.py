"""Table 1, input encoding: uniform frame sampling, and three initialisations of tubelet embedding (Model 1, ViViT-B).

    python -m vivit_jax.main --config=configs/paper/table1.py:central_frame --workdir=gs://BUCKET/table1_central \\
        --config.init_from.path=VIT_B_16

Initialised from a ViT-B/16 trained on ImageNet-21k: the rows differ in how the patch embedding of the image model
becomes that of the video model. From scratch all tubelet rows are the same.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: Kinetics-400 top-1, 78.5 / 73.2 / 77.6 / 79.2 in the order of the rows. The paper leaves open,
and this config chooses: frame sampling takes every second frame, for as many tokens as with tubelets; 4 x 3 views.
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
