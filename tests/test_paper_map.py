"""Symbols, files and config fields that docs/paper_map.md and docs/architecture.md name exist."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from vivit_jax.config.experiment import default_config
from vivit_jax.models import ViViTConfig

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "docs" / "paper_map.md").read_text()
CODE = sorted(set(re.findall(r"`([^`\n]+)`", TEXT + (REPOSITORY / "docs" / "architecture.md").read_text())))
FILE = re.compile(r"(vivit_jax|configs|tests|docs|launch|benchmarks)/\S*")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]


def resolve(name):
    """The object with a dotted name: the longest module that can be imported, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", [code for code in CODE if code.startswith("vivit_jax.")])
def test_symbol(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("path", [code for code in CODE if FILE.fullmatch(code)])
def test_file(path):
    assert (REPOSITORY / path).exists()


def fields():
    cells = [re.findall(r"`([^`]+)`", row[2]) for row in ROWS if row[2] != "fields"]
    return sorted({field for cell in cells for field in cell})


@pytest.mark.parametrize("text", fields())
def test_field(text):
    name, _, value = text.partition("=")
    if name.startswith("config."):
        section = default_config()
        for part in name.split(".")[1:]:
            section = section[part]
        return
    assert name in {field.name for field in dataclasses.fields(ViViTConfig)}
    if value:
        config = ViViTConfig(**{name: ast.literal_eval(value)})
        assert getattr(config, name) == ast.literal_eval(value)


def test_every_row_names_code_and_fields():
    assert len(ROWS) > 20
    for row in ROWS:
        assert len(row) == 3, row
        assert row[2] == "fields" or "`" in row[2], row


def test_all_equations_tables_and_figures_are_mapped():
    expected = [f"eq. {i}" for i in (1, 2, 3, 7, 8, 9)] + ["eqs. 4 to 6"]
    expected += [f"able {i}" for i in range(1, 7)] + [f"igure {i}" for i in range(2, 10)]
    assert [name for name in expected if name not in TEXT] == []
