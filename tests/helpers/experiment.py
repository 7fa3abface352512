"""Configs for tests: the files of configs/, and a small run with every kind of randomness on."""

import contextlib
from unittest import mock

from etils import epath

from tests.conftest import REPOSITORY
from vivit_jax import report
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.flags import load_config
from vivit_jax.train import periodic_evaluation

STEPS = 6  # of 8 clips, over the 20 videos of the fixture `data_dir`: the second epoch begins within a batch


def config_file(name):
    """The ConfigDict of configs/NAME.py."""
    return load_config(str(REPOSITORY / "configs" / f"{name}.py"))


def experiment(data_dir, **changes):
    """The quickstart's config, smaller; `section__field=value` changes a field."""
    config = config_file("moving_digits")
    config.data.dir = str(data_dir)
    config.batch_size = 8
    config.evaluation.batch_size = 8
    config.evaluation.dtype = "float32"  # whatever is faster on this machine
    config.init_from.image_epochs = 0.0
    config.num_steps = STEPS
    config.log_every_steps = 2
    config.checkpoint.every_steps = 3
    config.evaluation.every_epochs = 0.0
    config.optimizer.warmup_epochs = 0.5
    config.model.update(hidden_size=24, num_layers=2, temporal_layers=1, mlp_dim=32, num_frames=8)
    config.model.update(dropout_rate=0.1, stochastic_depth_rate=0.1, classifier=None, tubelet_size=(4, 14, 14))
    config.input.random_crop = True
    config.input.scale_jitter = (1.0, 1.3)
    for name, value in changes.items():
        *groups, field = name.split("__")
        section = config
        for group in groups:
            section = section[group]
        section[field] = value
    return Experiment.from_config(config)


@contextlib.contextmanager
def without_pictures(but=()):
    """Inside, a run draws no curves, and its report is an empty file, which saves a third of a small run's time.

    `but`: names of workdirs that get both.
    """

    def unless(draw, instead):
        return lambda workdir, *rest: draw(workdir, *rest) if epath.Path(workdir).name in but else instead(workdir)

    nothing, empty = (lambda workdir: None), (lambda workdir: (epath.Path(workdir) / report.FILE).write_text(""))
    with (
        mock.patch.object(report, "write", unless(report.write, empty)),
        mock.patch.object(periodic_evaluation, "write_curves", unless(periodic_evaluation.write_curves, nothing)),
    ):
        yield
