"""Overrides, and usage errors of the command line."""

import pytest
from absl import flags

from tests.conftest import REPOSITORY
from vivit_jax.config import flags as command_line

CONFIG = "--config=configs/moving_digits.py"


def parse(*arguments):
    """Returns the config of a command line."""
    known, argv = flags.FlagValues(), ["main", *arguments]
    command_line.define_config("", known, argv)
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    command_line.parse(argv, known)
    return known.config


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def test_fields_are_overridden():
    config = parse(CONFIG, "--config.batch_size=8", "--config.data.cache", "--config.data.mixture={'ucf101': 2.0}")
    assert (config.batch_size, config.data.cache, config.data.mixture.ucf101) == (8, True, 2.0)


def test_one_mesh_axis_is_overridden():
    assert dict(parse(CONFIG, "--config.mesh.fsdp=16").mesh) == {"data": -1, "fsdp": 16, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([CONFIG, "--config.batchsize=16"], "config.batchsize does not exist; did you mean config.batch_size?"),
        ([CONFIG, "--config.model.num_framez=3"], "did you mean config.model.num_frames?"),
        ([CONFIG, "--config.modle.num_layers=3"], "config.modle.num_layers does not exist; did you mean config.model."),
        ([CONFIG, "--config.data.videos=x"], "config.data.videos is now called config.data.video_dir"),
        ([CONFIG, "--config.mesh.fdsp=2"], "config.mesh has no 'fdsp' that can be set alone"),
        # In another group.
        ([CONFIG, "--config.num_frames=3"], "config.num_frames does not exist; did you mean config.model.num_frames?"),
        ([CONFIG, "--config.data.zzz=3"], "config.data.zzz does not exist; fields of config.data: "),
        ([CONFIG, "--config.data.mixture.ucf101=2"], "as a whole: --config.data.mixture=\"{'ucf101': VALUE}\""),
        ([CONFIG, "--config.batch_size=many"], "flag --config.batch_size=many: invalid literal for int"),
        ([CONFIG, "--config.optimzer.learning_rat=1"], "did you mean config.optimizer.learning_rate?"),
        ([CONFIG, "--config.model.tubelet_size[0]=4"], "0 is not a valid index for <class 'tuple'>"),
        ([CONFIG, "--config.model=5"], "flag --config.model=5: Failed to parse"),
        (["--config=docs/performance.md"], "performance.md is no Python file with a get_config()"),
        (["--config=configs/moving_digitz.py"], "did you mean configs/moving_digits.py?"),
        (["--config=configs/moving_digitz.py", "--config.batch_size=3"], "there is no config configs/moving_digitz.py"),
        (["--config=configs/k400_vivit_l.py:zzz"], "there is no row 'zzz'"),
        ([f"{CONFIG}:zzz"], "configs/moving_digits.py has no rows: give it without :zzz"),
        ([CONFIG, "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
        (["--config.batch_size=3", CONFIG], "before a value for --config was specified"),
    ],
)
def test_usage_errors_exit_with_2_and_a_hint(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert says in message
    assert "Traceback" not in message
