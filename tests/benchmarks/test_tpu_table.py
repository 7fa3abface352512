"""The tables of docs/tpu.md and docs/tpu_paper.md, without a compiler, and the slices that the configs name."""

import types

import pytest

from benchmarks import tpu_table
from benchmarks.tpu_table import Entry
from tests.conftest import REPOSITORY
from vivit_jax.compile import program, slices
from vivit_jax.compile.program import Compiled
from vivit_jax.compile.slices import GIB, parse
from vivit_jax.config.flags import load_module

CONFIG = str(REPOSITORY / "configs" / "k400_vivit_l.py")
RECIPES = sorted((REPOSITORY / "configs").glob("*_vivit_*.py"))
PAPER = sorted((REPOSITORY / "configs" / "paper").glob("[!_]*.py"))


@pytest.fixture
def attempts(monkeypatch):
    """Records the compiled remats and accumulation steps; 'full' fits, with at most 4 clips per shard at a time."""
    recorded = []

    def on(experiment, heads, devices):
        clips = experiment.batch_size // experiment.mesh["data"]
        steps = experiment.optimizer.accumulate_steps
        lower_train = lambda clips: (experiment.model["remat"], steps, clips)  # noqa: E731
        return types.SimpleNamespace(clips_per_shard=lambda step: clips, lower_train=lower_train, mesh=None)

    def compile_ahead(lowered, mesh):
        remat, steps, clips = lowered
        recorded.append(remat if steps == 1 else steps)
        fits = remat == "full" and clips // steps <= 4
        return Compiled(fits, 12 * GIB if fits else 20 * GIB, message="" if fits else "RESOURCE_EXHAUSTED")

    monkeypatch.setattr(program.Target, "on", on)
    monkeypatch.setattr(program, "compile_ahead", compile_ahead)
    monkeypatch.setattr(slices, "devices", lambda slice_: ())
    return recorded


def test_measure_tries_less_memory_until_it_fits(attempts):
    programs = {}
    entry = tpu_table.measure(CONFIG, parse("v3-32"), programs)
    assert entry == Entry(CONFIG, "v3-32", True, 12.0, "full", clips=2)
    assert attempts == ["none", "dots", "full"]
    tpu_table.measure(CONFIG, parse("v3-32"), programs)
    assert len(attempts) == 3, "cached programs are not compiled again"


@pytest.mark.parametrize(
    ("row", "slice_name", "accumulate_steps", "expected"),
    [
        ("", "v3-8", 2, ["full", 2]),
        ("", "v4-8", 4, ["none", "dots", "full", 2, 4]),  # another chip
        ("", "v3-64", 1, ["none", "dots", "full"]),  # fewer clips
        ("", "v3-256", 1, ["none", "dots", "full"]),  # several devices share a clip
        (":320", "v3-8", 2, ["none", "dots", "full", 2]),  # another config
    ],
)
def test_measure_skips_remat_rejected_at_smaller_batch(attempts, row, slice_name, accumulate_steps, expected):
    other = Entry(CONFIG, "v3-32", True, 12.0, "full", clips=2)
    entry = tpu_table.measure(f"{CONFIG}{row}", parse(slice_name), {}, [other])
    assert (entry.accumulate_steps, attempts) == (accumulate_steps, expected)


def test_write_replaces_the_table_and_read_restores_it(tmp_path):
    document = tmp_path / "tpu.md"
    document.write_text(f"Before.\n\n{tpu_table.BEGIN}\n{tpu_table.END}\n\nAfter.\n")
    assert tpu_table.read(document) == {}
    entries = [
        Entry("configs/a.py", "v3-32", True, 13.0, "dots", clips=2),
        Entry("configs/a.py", "v3-256", True, 0.5, "none", clips=1, devices_per_clip=4),
        Entry("configs/b.py:320", "v3-32", False, 70.0),
        Entry("configs/b.py:320", "v3-256", False),
        Entry("configs/b.py:320", "v4-8", True, 30.0, "full", clips=16, accumulate_steps=4),
    ]
    tpu_table.write(document, entries, ("v3-32", "v3-256", "v4-8"))
    assert document.read_text() == (
        f"Before.\n\n{tpu_table.BEGIN}\n\n"
        "| config | v3-32 | v3-256 | v4-8 |\n| --- | --- | --- | --- |\n"
        "| a | 13.0 GiB, remat dots, 2 clips per shard | 0.5 GiB, remat none, 1 clip per shard, 4 devices per clip "
        "| not compiled |\n"
        "| b:320 | **no**: 70 GiB | **no**: mesh | 30.0 GiB, remat full, 16 clips per shard, 4 accumulation steps |\n"
        f"\n{tpu_table.END}\n\nAfter.\n"
    )
    assert list(tpu_table.read(document).values()) == entries
    document.write_text("no markers")
    with pytest.raises(ValueError, match="between which the table stands"):
        tpu_table.write(document, entries, ("v3-32",))


def fitting_slices(document, config):
    """The slices on which a config fits without accumulation, by a table of docs/."""
    entries = tpu_table.read(REPOSITORY / "docs" / document).values()
    return {e.slice for e in entries if e.config == config and e.fits and e.accumulate_steps == 1}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_the_slices_that_hold_them(path):
    assert set(load_module(path).SLICES) == fitting_slices("tpu.md", f"configs/{path.name}")


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_configs_name_slices_that_hold_every_row(path):
    module = load_module(path)
    assert module.SLICES
    for row in module.ROWS:
        assert set(module.SLICES) <= fitting_slices("tpu_paper.md", f"configs/paper/{path.name}:{row}"), row
