"""The table of docs/tpu.md: what is compiled for it, what need not be, and what it says; without a compiler."""

import json
import runpy
import types

import pytest

from tests.conftest import REPOSITORY
from vivit_jax.compile import ahead, program, slices, table
from vivit_jax.compile.ahead import Compiled
from vivit_jax.compile.slices import GIB, parse

CONFIG = str(REPOSITORY / "configs" / "k400_vivit_l.py")


@pytest.fixture
def tried(monkeypatch):
    """The remats and turns that were compiled: only 'full' fits, and no more than 4 clips on a device at a time."""
    found = []

    def on(experiment, heads, devices):
        clips = experiment.batch_size // experiment.mesh["data"]
        turns = experiment.optimizer.accumulate_steps
        lower_train = lambda clips: (experiment.model["remat"], turns, clips)  # noqa: E731
        return types.SimpleNamespace(clips_per_part=lambda batch: clips, lower_train=lower_train, mesh=None)

    def compile_ahead(lowered, mesh):
        remat, turns, clips = lowered
        found.append(remat if turns == 1 else turns)
        fits = remat == "full" and clips // turns <= 4
        return Compiled(fits, 12 * GIB if fits else 20 * GIB, message="" if fits else "RESOURCE_EXHAUSTED")

    monkeypatch.setattr(program.Target, "on", on)
    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    monkeypatch.setattr(slices, "devices", lambda slice_: ())
    return found


def test_turns_are_tried_last_and_a_remat_that_was_refused_with_fewer_clips_on_the_same_chip_is_not_tried(tried):
    known = {}
    entry = table.measure(CONFIG, parse("v3-32"), known)
    assert (entry.remat, entry.fits, entry.clips, entry.mesh) == ("full", True, 2, {"data": 32})
    assert tried == ["none", "dots", "full"]
    table.measure(CONFIG, parse("v3-32"), known)
    assert len(tried) == 3, "known programs are not compiled again"

    def also(name, slice_):
        tried.clear()
        entry_there = table.measure(name, parse(slice_), known, [entry])
        return entry_there.turns, list(tried)

    assert also(CONFIG, "v3-8") == (2, ["full", 2])
    assert also(CONFIG, "v4-8") == (4, ["none", "dots", "full", 2, 4]), "another chip"
    assert also(CONFIG, "v3-64") == (1, ["none", "dots", "full"]), "fewer clips"
    assert also(CONFIG, "v3-256") == (1, ["none", "dots", "full"]), "several devices share a clip"
    assert also(f"{CONFIG}:320", "v3-8") == (2, ["none", "dots", "full", 2]), "another config"


def test_all_rows_of_a_config_are_named_by_a_star():
    assert table.rows_of(f"{CONFIG}:*")[:2] == [f"{CONFIG}:224", f"{CONFIG}:320"]
    assert table.rows_of(CONFIG) == [CONFIG]
    with pytest.raises(ValueError, match="has no rows"):
        table.rows_of(f"{REPOSITORY}/configs/moving_digits.py:*")


def test_the_table_keeps_the_text_around_it_and_says_how_each_config_fits(tmp_path):
    out = tmp_path / "tpu.md"
    out.write_text(f"Before.\n\n{table.BEGIN}\nold\n{table.END}\n\nAfter.\n")
    entries = [
        table.Entry("configs/a.py", "v3-32", 64, {"data": 32}, 2, "dots", True, peak=13 * GIB),
        table.Entry("configs/a.py", "v3-256", 64, {"data": 64, "sequence": 4}, 1, "none", True, peak=GIB // 2),
        table.Entry("configs/b.py:320", "v3-32", 64, {"data": 32}, 2, "full", False, peak=70 * GIB),
        table.Entry("configs/b.py:320", "v3-256", 64, {}, 0, "full", False, says="does not divide"),
        table.Entry("configs/b.py:320", "v4-8", 64, {"data": 4}, 16, "full", True, peak=30 * GIB, turns=4),
    ]
    table.write(out, entries, ("v3-32", "v3-256", "v4-8"))
    assert out.read_text() == (
        f"Before.\n\n{table.BEGIN}\n\n"
        "| config | v3-32 | v3-256 | v4-8 |\n|---|---|---|---|\n"
        "| a | 13.0 GiB, remat dots, 2 a part | 0.5 GiB, remat none, 1 a part, 4 devices a clip | not compiled |\n"
        "| b:320 | **no**: 70 GiB | **no**: mesh | 30.0 GiB, remat full, 16 a part in 4 turns |\n"
        f"\n{table.END}\n\nAfter.\n"
    )
    out.write_text("no markers")
    with pytest.raises(ValueError, match="to write the table between"):
        table.write(out, entries, ("v3-32",))


def named_and_compiled(path, document):
    """(the slices that a config names, what the document's file has of it and its rows)."""
    entries = json.loads((REPOSITORY / "docs" / f"{document}.json").read_text())["entries"]
    name = path.relative_to(REPOSITORY).as_posix()
    own = [entry for entry in entries if entry["config"].partition(":")[0] == name]
    return set(runpy.run_path(str(path))["SLICES"]), own


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*_vivit_*.py")), ids=lambda path: path.stem)
def test_every_recipe_names_the_slices_that_hold_it(path):
    """Those on which its first row fits in one go, by what was compiled for docs/tpu.md."""
    named, entries = named_and_compiled(path, "tpu")
    own = [entry for entry in entries if ":" not in entry["config"]]
    assert named == {entry["slice"] for entry in own if entry["fits"] and entry["turns"] == 1}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "paper").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_paper_names_slices_that_hold_each_of_its_rows(path):
    named, entries = named_and_compiled(path, "tpu_paper")
    rows = {f"configs/paper/{path.name}:{row}" for row in runpy.run_path(str(path))["ROWS"]}
    assert named
    for slice_ in named:
        assert {
            entry["config"] for entry in entries if entry["slice"] == slice_ and entry["fits"] and entry["turns"] == 1
        } == rows
