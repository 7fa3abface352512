"""Loading config files by their path."""

from pathlib import Path

import pytest

from benchmarks.tpu_table import expand_rows
from tests.conftest import REPOSITORY
from vivit_jax.config.experiment import ConfigError
from vivit_jax.config.flags import find_config, load_config, load_module

CONFIG = str(REPOSITORY / "configs" / "k400_vivit_l.py")


def test_load_config_by_file_and_row():
    assert load_config(CONFIG).model.image_size == 224
    assert load_config(f"{CONFIG}:320").model.image_size == 320


def test_expand_rows_lists_every_row():
    assert expand_rows(f"{CONFIG}:*")[:2] == [f"{CONFIG}:224", f"{CONFIG}:320"]
    assert expand_rows(CONFIG) == [CONFIG]
    with pytest.raises(ConfigError, match="has no ROWS"):
        expand_rows(f"{REPOSITORY}/configs/moving_digits.py:*")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config .*absent\.py"):
        load_module(tmp_path / "absent.py")


def test_packaged_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("moving_digits") == REPOSITORY / "configs" / "moving_digits.py"
    assert load_config("paper/table2:model3").model.attention == "factorised_self_attention"
    (tmp_path / "moving_digits").write_text("")
    assert find_config("moving_digits") == Path("moving_digits")  # an existing path wins


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("k400_vivit_xl", r"did you mean k400_vivit_l\?"),
        ("configs/moving_digits.py", r"did you mean moving_digits\?"),
        ("zzz", "known: epic100_vivit_l_fe, finetune, k400_vivit_b, "),
    ],
)
def test_unknown_name_suggests_similar_ones(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"there is no config {name}; {hint}"):
        find_config(name)


def test_file_without_get_config_is_an_error(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.py: .* has no attribute 'get_config'"):
        load_config(str(tmp_path / "empty.py"))
