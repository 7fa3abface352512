"""Table 6, comparison with the state of the art: the rows of ViViT on the five data sets.

    python -m vivit_jax.main --config=configs/paper/table6.py:k400_l --workdir=gs://BUCKET/table6_k400_l \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.main --config=configs/paper/table6.py:epic100_l_fe --workdir=gs://BUCKET/table6_epic100 \\
        --config.init_from.path=gs://BUCKET/k400_vivit_l_fe --config.init_from.temporal_encoder=random

Initialised from a ViT-L/16 trained on ImageNet-21k, or from a ViT-L or ViT-H trained on JFT where the row says so; for
EPIC-Kitchens from a run of Model 2 on Kinetics-400. From scratch, the rows with and without JFT are the same. Each
recipe also has a file of its own: configs/k400_vivit_l.py, k400_vivit_h.py, k600_vivit_l.py, k600_vivit_h.py,
mit_vivit_l.py, epic100_vivit_l_fe.py, ssv2_vivit_l_fe.py.
Hardware: a Cloud TPU slice of `SLICES` (docs/tpu_paper.md); the paper used TPU v3.
Published: top-1 / top-5 with 4 x 3 views beside each row. For Moments in Time, EPIC-Kitchens (4 x 1 views) and
Something-Something the values are not recorded here; the released EPIC model reaches 43.6 action top-1.
"""

from vivit_jax.config import recipes

SLICES = ("v3-32",)

ROWS = {
    "k400_l": "Kinetics-400, L/16x2: 80.6 / 94.7",
    "k400_l_320": "Kinetics-400, L/16x2, crops of 320: 81.3 / 94.7",
    "k400_l_jft": "Kinetics-400, L/16x2, initialised from JFT: 82.8 / 95.5",
    "k400_l_320_jft": "Kinetics-400, L/16x2, crops of 320, initialised from JFT: 83.5 / 95.5",
    "k400_h_jft": "Kinetics-400, H/16x2, initialised from JFT: 84.8 / 95.8",
    "k600_l": "Kinetics-600, L/16x2: 82.5 / 95.6",
    "k600_l_320": "Kinetics-600, L/16x2, crops of 320: 83.0 / 95.7",
    "k600_l_jft": "Kinetics-600, L/16x2, initialised from JFT: 84.3 / 96.2",
    "k600_h_jft": "Kinetics-600, H/16x2, initialised from JFT: 85.8 / 96.5",
    "mit_l": "Moments in Time, L/16x2",
    "epic100_l_fe": "EPIC-Kitchens-100, L/16x2, factorised encoder",
    "ssv2_l_fe": "Something-Something v2, L/16x2, factorised encoder",
}
_DATASETS = {
    "k400": "kinetics400",
    "k600": "kinetics600",
    "mit": "moments_in_time",
    "epic100": "epic_kitchens100",
    "ssv2": "something_something_v2",
}


def get_config(row=""):
    recipes.check_row(row, ROWS)
    dataset, backbone, *details = row.split("_")
    attention = "factorised_encoder" if "fe" in details else "spatiotemporal"
    config = recipes.published(_DATASETS[dataset], f"ViViT-{backbone.upper()}/16x2", attention)
    if "320" in details:
        recipes.set_crop(config, 320)
    return config
