"""Figure 9, frames in at a constant number of tokens: the tubelet grows with the clip (Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/figure9.py:frames64 --workdir=gs://BUCKET/figure9_frames64 \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.main --config=configs/paper/figure9.py:frames64 --workdir=gs://BUCKET/figure9_frames64 \\
        --mode=eval --config.evaluation.temporal_views=3
    python -m vivit_jax.cost --only=figure9

The first command trains, the second gives a point of the curve, for each number of temporal views, the third counts
the tokens. VIT_L_16 holds the weights of a ViT-L/16 trained on ImageNet-21k; without it the run starts from scratch.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold every row, docs/tpu_paper.md how. The cores of
another slice must divide the batch of 64.
Published: a figure, whose points are not recorded here: a Kinetics video has 250 frames, and accuracy saturates once
the views together see them all. At stride 2 that takes 4 views of 32 frames, 2 of 64 or 1 of 128, which are the rows'
own.
Open, and chosen here: the lengths, and the model, ViViT-L, Model 2, with 4 temporal layers.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "frames32": "32 frames, tubelets of 2: 4 views see the whole video",
    "frames64": "64 frames, tubelets of 4: 2 views see the whole video",
    "frames128": "128 frames, tubelets of 8: 1 view sees the whole video",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    frames = int(row.removeprefix("frames"))
    config = recipes.published("kinetics400", f"ViViT-L/16x{frames // 16}", "factorised_encoder")
    config.model.num_frames = frames
    config.evaluation.temporal_views = 128 // frames
    return config


def sweep():
    return {row: get_config(row) for row in ROWS}
