"""The tables of docs/tpu.md and docs/tpu_paper.md: which config fits which TPU slice, by compiling each for each.

    python -m benchmarks.tpu_table
    python -m benchmarks.tpu_table --configs=configs/k400_vivit_l.py:320 --slices=v3-32,v5e-16
    python -m benchmarks.tpu_table --out=docs/tpu_paper.md --configs='configs/paper/table2.py:*' --slices=v3-32

Needs libtpu (extra `tpu`), no TPU. Cells that are not compiled keep their text. Compiled programs are cached in
`--cache`, so that an interrupted run continues. A program takes half a minute to four minutes on a CPU core.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from vivit_jax.compile import slices
from vivit_jax.compile.slices import GIB, Slice
from vivit_jax.config.fields import ConfigError
from vivit_jax.config.flags import load_config, load_module
from vivit_jax.models.config import REMATS
from vivit_jax.utils import tables

COLUMNS = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")
BEGIN, END = "<!-- begin: python -m benchmarks.tpu_table -->", "<!-- end -->"
NOT_COMPILED = "not compiled"
BAD_MESH = "**no**: mesh"

_CELL = re.compile(
    r"([\d.]+) GiB, remat (\w+), (\d+) clips? per shard(?:, (\d+) accumulation steps)?(?:, (\d+) devices per clip)?"
)
_DOES_NOT_FIT = re.compile(r"\*\*no\*\*: (\d+) GiB")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One config on one slice: a cell of the table.

    Attributes:
      config: FILE or FILE:ROW.
      slice: its name.
      fits: whether the training step fits.
      gib: GiB in use on a device at the worst moment, or required where it does not fit; 0 where nothing was compiled
        because the mesh does not suit the model.
      remat: the first of `REMATS` that fits; the last where none does.
      clips: per batch shard.
      accumulate_steps: more than 1 only where no remat fits otherwise.
      devices_per_clip: devices along `sequence`.
    """

    config: str
    slice: str
    fits: bool
    gib: float = 0.0
    remat: str = REMATS[-1]
    clips: int = 0
    accumulate_steps: int = 1
    devices_per_clip: int = 1

    def __str__(self) -> str:
        if not self.fits:
            return f"**no**: {self.gib:.0f} GiB" if self.gib else BAD_MESH
        steps = f", {self.accumulate_steps} accumulation steps" if self.accumulate_steps > 1 else ""
        devices = f", {self.devices_per_clip} devices per clip" if self.devices_per_clip > 1 else ""
        clips = "1 clip" if self.clips == 1 else f"{self.clips} clips"
        return f"{self.gib:.1f} GiB, remat {self.remat}, {clips} per shard{steps}{devices}"

    @classmethod
    def parse(cls, config: str, slice_name: str, cell: str) -> Entry:
        """Reads a cell of the table.

        Raises:
          ValueError: the cell has another form.
        """
        if cell == BAD_MESH:
            return cls(config, slice_name, False)
        if match := _DOES_NOT_FIT.fullmatch(cell):
            return cls(config, slice_name, False, float(match[1]))
        if match := _CELL.fullmatch(cell):
            gib, remat, clips, steps, devices = match.groups()
            return cls(config, slice_name, True, float(gib), remat, int(clips), int(steps or 1), int(devices or 1))
        raise ValueError(f"cell {cell!r} of {config} on {slice_name} is none that this program writes")


def expand_rows(name: str) -> list[str]:
    """Returns FILE:ROW of each row for `FILE:*`, any other name itself; ConfigError where there is no file or row."""
    file, _, row = name.partition(":")
    if row != "*":
        return [name]
    rows = getattr(load_module(file), "ROWS", None)
    if not rows:
        raise ConfigError(f"{name}: {file} has no ROWS; name the file alone")
    return [f"{file}:{row}" for row in rows]


def mesh_for(batch_size: int, slice_: Slice) -> dict[str, int]:
    """Returns a data-parallel mesh; where there are more devices than clips, several share a clip over `sequence`."""
    data = min(batch_size, slice_.num_devices)
    return {"data": data, "sequence": slice_.num_devices // data}


def measure(name: str, slice_: Slice, programs: dict[str, Any], others: Iterable[Entry] = ()) -> Entry:
    """Compiles the training step of a config with less and less memory until it fits.

    The order is: each remat in one go, then the last remat with 2, 4, ... accumulation steps.

    Args:
      name: FILE or FILE:ROW.
      slice_: the slice to compile for.
      programs: {program key: what the compiler said}; programs in it are not compiled again, new ones are added.
      others: earlier entries. A remat that did not fit with as many devices per clip on the same chip is skipped.
    """
    from vivit_jax.compile.program import Target, compile_ahead
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.data import catalog
    from vivit_jax.train.compiled_step import memory_key
    from vivit_jax.train_step.remat import FASTEST_FIRST

    config = load_config(name)
    mesh = mesh_for(config.batch_size, slice_)
    config.mesh.update(mesh)
    entry = Entry(name, slice_.name, False, devices_per_clip=mesh["sequence"])
    clips_per_shard = config.batch_size // mesh["data"]
    steps = [2**i for i in range(1, clips_per_shard.bit_length()) if clips_per_shard % 2**i == 0]
    choices = FASTEST_FIRST["tpu"]
    options = [*((choice, 1) for choice in choices), *((choices[-1], count) for count in steps)]
    for choice, accumulate_steps in options[max((_num_rejected(other, entry) for other in others), default=0) :]:
        config.model.update(choice._asdict())
        config.optimizer.accumulate_steps = accumulate_steps
        experiment = Experiment.from_config(config)
        heads = dict(catalog.get(experiment.data.name).heads)
        key = memory_key(experiment, len(heads), str(slice_))
        try:
            if key not in programs:
                target = Target.on(experiment, heads, slices.devices(slice_))
                clips = target.clips_per_shard("train")
                compiled = compile_ahead(target.lower_train(clips), target.mesh)
                figures = {"fits": compiled.fits, "gib": compiled.peak / GIB, "clips": clips}
                programs[key] = figures | {"hbm_gib": compiled.hbm / GIB, "seconds": compiled.seconds}
        except ValueError as error:  # the mesh does not suit the model
            print(f"{name} on {slice_.name}: {error}", flush=True)
            return entry
        found = {field: programs[key][field] for field in ("fits", "gib", "clips")}
        entry = dataclasses.replace(entry, remat=choice.remat, accumulate_steps=accumulate_steps, **found)
        if entry.fits:
            break
    return entry


def _num_rejected(other: Entry, entry: Entry) -> int:
    """Returns how many of the first remats another entry shows not to fit."""
    slice_, other_slice = slices.parse(entry.slice), slices.parse(other.slice)
    same = entry.config == other.config and slice_.generation == other_slice.generation
    if not same or not other.gib or other_slice.num_devices < slice_.num_devices:
        return 0
    return REMATS.index(other.remat)  # the last remat is always compiled: its message names the memory required


def markdown(entries: Iterable[Entry], columns: Sequence[str]) -> str:
    """Returns the table: a row for each config, a column for each slice."""
    by_config: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_config.setdefault(entry.config, {})[entry.slice] = entry
    rows = [
        [config.removeprefix("configs/").replace(".py", ""), *(cells.get(column, NOT_COMPILED) for column in columns)]
        for config, cells in by_config.items()
    ]
    return tables.to_markdown(["config", *columns], rows)


def read(document: Path) -> dict[tuple[str, str], Entry]:
    """Returns the entries of a document's table, {(config, slice): entry}."""
    entries = {}
    table = _split(document)[1].strip().splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table] or [[], []]
    for cells in rows:
        row = dict(zip(header, cells, strict=True))
        file, colon, config_row = row.pop("config").partition(":")
        config = f"configs/{file}.py{colon}{config_row}"
        for slice_name, cell in row.items():
            if cell != NOT_COMPILED:
                entries[config, slice_name] = Entry.parse(config, slice_name, cell)
    return entries


def write(document: Path, entries: Iterable[Entry], columns: Sequence[str]) -> None:
    """Replaces the table between the markers of a document."""
    before, _, after = _split(document)
    document.write_text(f"{before}{BEGIN}\n\n{markdown(entries, columns)}\n\n{END}{after}")


def _split(document: Path) -> tuple[str, str, str]:
    """Returns the text before, between and after the markers of a document."""
    text = document.read_text() if document.exists() else f"# TPU slices\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{document} has no {BEGIN} and {END}, between which the table stands")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    slices.without_a_tpu()
    out, cache = Path(flags.FLAGS.out), Path(flags.FLAGS.cache)
    try:
        programs = json.loads(cache.read_text()) if cache.exists() else {}
        cache.parent.mkdir(parents=True, exist_ok=True)
        entries = read(out)
        recipes = {str(path) for path in Path("configs").glob("*_vivit_*.py")}
        names = flags.FLAGS.configs or sorted(recipes.union(config for config, _ in entries))
        names = [row for name in names for row in expand_rows(name)]
        # The largest slice first: a remat that does not fit there is skipped where a device has more clips.
        for slice_ in sorted(map(slices.parse, flags.FLAGS.slices), key=lambda slice_: -slice_.num_devices):
            for name in names:
                entry = measure(name, slice_, programs, entries.values())
                entries[name, slice_.name] = entry
                print(f"{name} on {slice_.name}: {entry}", flush=True)
                cache.write_text(json.dumps(programs, indent=1))
                ordered = [entries[key] for key in sorted(entries)]
                write(out, ordered, [c for c in COLUMNS if any(e.slice == c for e in ordered)])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "docs/tpu.md", "Document whose table is written, between its two markers.")
    flags.DEFINE_list(
        "configs",
        [],
        "Comma-separated FILE, FILE:ROW or FILE:*. Default: recipes of configs/ and rows of the table.",
    )
    flags.DEFINE_list("slices", list(COLUMNS), "Comma-separated slices.")
    flags.DEFINE_string("cache", "runs/tpu_table/programs.json", "Results of compiled programs.")
    logging.set_verbosity(logging.WARNING)
    app.run(main)
