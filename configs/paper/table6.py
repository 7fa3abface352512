"""Table 6, against the state of the art: our rows on the five data sets.

    python -m vivit_jax.main --config=configs/paper/table6.py:k400_l --workdir=gs://BUCKET/table6_k400_l \\
        --config.init_from.path=VIT_L_16
    python -m vivit_jax.main --config=configs/paper/table6.py:epic100_l_fe --workdir=gs://BUCKET/table6_epic100 \\
        --config.init_from.path=gs://BUCKET/k400_vivit_l_fe --config.init_from.temporal_encoder=random

What a row starts from is part of it: a ViT-L/16 trained on ImageNet-21k, or where the row says so a ViT-L or ViT-H
trained on JFT; for EPIC-Kitchens a run of Model 2 on Kinetics-400. Without a path it starts from scratch, and a JFT
row is the row without.
The recipes one by one, with what is open in each: configs/k400_vivit_l.py, k400_vivit_h.py, k600_vivit_l.py,
k600_vivit_h.py, mit_vivit_l.py, epic100_vivit_l_fe.py, ssv2_vivit_l_fe.py.
Hardware: Cloud TPU v3 as in the paper; `SLICES` names slices that hold every row, docs/tpu_paper.md how. The cores of
another slice must divide the batch of 64.
Published: top-1 / top-5 with 4 x 3 views beside each row. For Moments in Time, EPIC-Kitchens (4 x 1 views) and
Something-Something the table's figures are not recorded here; the released EPIC model reaches 43.6 action top-1.
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


def sweep():
    return {row: get_config(row) for row in ROWS}
