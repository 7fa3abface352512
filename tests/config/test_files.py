"""Loading config files by their path."""

import pytest

from tests.conftest import REPOSITORY
from vivit_jax.config.experiment import ConfigError
from vivit_jax.config.files import expand_rows, load_config, load_module

CONFIG = str(REPOSITORY / "configs" / "k400_vivit_l.py")


def test_load_config_takes_a_file_or_a_row_of_it():
    assert load_config(CONFIG).model.image_size == 224
    assert load_config(f"{CONFIG}:320").model.image_size == 320


def test_expand_rows_lists_every_row():
    assert expand_rows(f"{CONFIG}:*")[:2] == [f"{CONFIG}:224", f"{CONFIG}:320"]
    assert expand_rows(CONFIG) == [CONFIG]
    with pytest.raises(ConfigError, match="has no ROWS"):
        expand_rows(f"{REPOSITORY}/configs/moving_digits.py:*")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.py does not exist"):
        load_module(tmp_path / "absent.py")
