"""Figure 9, longer clips at a constant number of tokens: the tubelet grows with the clip (Kinetics-400).

    python -m vivit_jax.main --config=configs/paper/figure9.py:frames64 --workdir=gs://BUCKET/figure9_frames64 \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.main --config=configs/paper/figure9.py:frames64 --workdir=gs://BUCKET/figure9_frames64 \\
        --mode=eval --config.evaluation.temporal_views=3
    python -m vivit_jax.cost --only=figure9

Evaluations with different numbers of temporal views give the points of a curve; `vivit_jax.cost` prints the number of
tokens. Initialised from a ViT-L/16 trained on ImageNet-21k.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: a figure, whose values are not recorded here: accuracy saturates once the views cover all 250 frames of a
Kinetics video. At stride 2 that takes 4 views of 32 frames, 2 of 64 or 1 of 128, the defaults of the rows. The paper
leaves open, and this config chooses: the lengths, and the model, ViViT-L, Model 2, with 4 temporal layers.
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
