"""Markdown and CSV tables."""

from vivit_jax.utils import tables

ROWS = [("x, y", 1), ("z", 20)]


def test_csv_quotes_cells_with_commas():
    assert tables.to_csv(("name", "count"), ROWS) == 'name,count\n"x, y",1\nz,20\n'


def test_markdown_has_a_rule_under_the_header():
    text = tables.to_markdown(("name", "count"), ROWS, rule=("---", "---:"))
    assert text == "| name | count |\n| --- | ---: |\n| x, y | 1 |\n| z | 20 |"
