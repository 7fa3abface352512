"""The table of docs/tpu.md: what is compiled for it, what need not be, and what it says; without a compiler."""

import types

import pytest

from tests.conftest import REPOSITORY
from vivit_jax.compile import ahead, program, slices, table
from vivit_jax.compile.ahead import Compiled
from vivit_jax.compile.slices import GIB, parse

CONFIG = str(REPOSITORY / "configs" / "k400_vivit_l.py")


@pytest.fixture
def tried(monkeypatch):
    """The remats that were compiled: only 'full' fits, and with more than 4 clips on a device nothing does."""
    found = []

    def on(experiment, heads, devices):
        clips = experiment.batch_size // experiment.mesh["data"]
        lower_train = lambda clips: (experiment.model["remat"], clips)  # noqa: E731
        return types.SimpleNamespace(clips_per_part=lambda batch: clips, lower_train=lower_train, mesh=None)

    def compile_ahead(lowered, mesh):
        found.append(lowered[0])
        fits = lowered[0] == "full" and lowered[1] <= 4
        return Compiled(fits, 12 * GIB if fits else 20 * GIB, message="" if fits else "RESOURCE_EXHAUSTED")

    monkeypatch.setattr(program.Target, "on", on)
    monkeypatch.setattr(ahead, "compile_ahead", compile_ahead)
    monkeypatch.setattr(slices, "devices", lambda slice_: ())
    return found


def test_a_remat_that_was_refused_with_fewer_clips_on_the_same_chip_is_not_tried(tried):
    known = {}
    entry = table.measure(CONFIG, parse("v3-32"), known)
    assert (entry.remat, entry.fits, entry.clips, entry.mesh) == ("full", True, 2, {"data": 32})
    assert tried == ["none", "dots", "full"]
    table.measure(CONFIG, parse("v3-32"), known)
    assert len(tried) == 3, "known programs are not compiled again"

    def also(name, slice_):
        tried.clear()
        entry_there = table.measure(name, parse(slice_), known, [entry])
        return entry_there.fits, list(tried)

    assert also(CONFIG, "v3-8") == (False, ["full"])
    assert also(CONFIG, "v3-64") == (True, ["none", "dots", "full"]), "fewer clips"
    assert also(CONFIG, "v3-256") == (True, ["none", "dots", "full"]), "several devices share a clip"
    assert also(CONFIG, "v5e-16") == (True, ["none", "dots", "full"]), "another chip"
    assert also(f"{CONFIG}:320", "v3-8") == (False, ["none", "dots", "full"]), "another config"


def test_the_table_keeps_the_text_around_it_and_says_how_each_config_fits(tmp_path):
    out = tmp_path / "tpu.md"
    out.write_text(f"Before.\n\n{table.BEGIN}\nold\n{table.END}\n\nAfter.\n")
    entries = [
        table.Entry("configs/a.py", "v3-32", 64, {"data": 32}, 2, "dots", True, peak=13 * GIB),
        table.Entry("configs/a.py", "v3-256", 64, {"data": 64, "sequence": 4}, 1, "none", True, peak=GIB // 2),
        table.Entry("configs/b.py:320", "v3-32", 64, {"data": 32}, 2, "full", False, peak=70 * GIB),
        table.Entry("configs/b.py:320", "v3-256", 64, {}, 0, "full", False, says="does not divide"),
    ]
    table.write(out, entries, ("v3-32", "v3-256", "v4-8"))
    assert out.read_text() == (
        f"Before.\n\n{table.BEGIN}\n\n"
        "| config | v3-32 | v3-256 | v4-8 |\n|---|---|---|---|\n"
        "| a | 13.0 GiB, remat dots, 2 a part | 0.5 GiB, remat none, 1 a part, 4 devices a clip | not compiled |\n"
        "| b:320 | **no**: 70 GiB | **no**: mesh | not compiled |\n"
        f"\n{table.END}\n\nAfter.\n"
    )
    out.write_text("no markers")
    with pytest.raises(ValueError, match="to write the table between"):
        table.write(out, entries, ("v3-32",))
