"""Each official data set: build, verify, train, interrupt, resume, evaluate."""

import numpy as np
import pytest

from tests.helpers import miniature
from tests.helpers.interrupt import killed_after
from vivit_jax import train
from vivit_jax.config import recipes
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import build, verify
from vivit_jax.evaluation import evaluate

# Kinetics-600 has the files of Kinetics-400.
OFFICIAL = ["kinetics400", "moments_in_time", "epic_kitchens100", "something_something_v2"]
STEPS = 10


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_from_official_files_to_an_evaluated_model(name, tmp_path):
    small = miniature.write(name, tmp_path / "source")
    records = build.build(
        name, small.videos, small.annotations, tmp_path / "data", build.BuildOptions(num_workers=0, progress=False)
    )
    verify.main([str(records)])  # exits if there is a problem

    config = recipes.published(name, "ViViT-Ti/16x2", "factorised_encoder", temporal_layers=1)
    config.data.dir = str(tmp_path / "data")
    config.model.update(hidden_size=24, num_layers=2, mlp_dim=32, num_heads=3, num_frames=4, image_size=32)
    config.model.dtype = "float32"
    config.input.short_side = 40
    config.batch_size = config.evaluation.batch_size = 8
    config.num_steps = STEPS
    config.optimizer.warmup_epochs = 0.0
    config.evaluation.temporal_views = 2
    config.evaluation.every_epochs = 0.0
    config.checkpoint.every_steps = 4
    run = Experiment.from_config(config)

    with killed_after(6), pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path / "w")
    metrics = train.train(run, tmp_path / "w")
    result = evaluate.evaluate(run, tmp_path / "w")
    assert result.counted == len(small.expected["validation"])
    assert result.scalars == pytest.approx(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert result.views == (2, 1 if name == "epic_kitchens100" else 3)
