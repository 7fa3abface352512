"""docs/tpu.md: which config fits which slice, compiled one after another; kept in a file, so that it can be broken off.

python -m vivit_jax.compile.table --out=docs/tpu.md
python -m vivit_jax.compile.table --out=docs/tpu.md --configs=configs/k400_vivit_l.py:320 --slices=v3-32,v5e-16
python -m vivit_jax.compile.table --out=docs/tpu_paper.md --configs='configs/paper/table2.py:*' --slices=v3-32

What was compiled before, with the same program on the same slice, is taken from the JSON file beside the table; so a
second run compiles what is new. A program takes a minute or two on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import runpy
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from vivit_jax.compile import slices
from vivit_jax.compile.slices import GIB, Slice
from vivit_jax.models.config import REMATS  # the fastest first

COLUMNS = ("v3-8", "v3-32", "v3-256", "v4-8", "v4-64", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v6e-8")


# What of the optimizer makes a difference to memory; rates and schedules make none.
_OF_MEMORY = ("name", "momentum", "clip_norm", "weight_decay", "frozen", "accumulate_steps", "ema_decay", "sam_rho")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One config on one slice.

    Attributes:
      config: FILE or FILE:ROW.
      slice: its name.
      batch: global.
      mesh: {axis: devices}, those above 1.
      clips: in each part of the batch.
      remat: the first of `REMATS` that fits; the last where none does.
      turns: parts that the batch is taken in one after another (`optimizer.accumulate_steps`); more than one only where
        no remat fits otherwise.
      fits: whether it does.
      peak: bytes on each device.
      available: bytes that the compiler gives.
      seconds: of compiling the program that fits.
      says: why there is nothing to compile, or the compiler's message.
    """

    config: str
    slice: str
    batch: int
    mesh: Mapping[str, int]
    clips: int
    remat: str
    fits: bool
    peak: int = 0
    available: int = 0
    seconds: float = 0.0
    says: str = ""
    turns: int = 1


def load(name: str) -> Any:
    """The ConfigDict of FILE or FILE:ROW."""
    file, _, row = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(row) if row else module.get_config()


def rows_of(name: str) -> list[str]:
    """FILE:ROW of each row of 'FILE:*'; of any other name itself.

    Raises:
      ValueError: the file has no rows.
    """
    file, _, row = name.partition(":")
    if row != "*":
        return [name]
    if not (rows := runpy.run_path(file).get("ROWS")):
        raise ValueError(f"{name}: {file} has no rows (ROWS); name the file alone")
    return [f"{file}:{row}" for row in rows]


def mesh_for(batch: int, slice_: Slice) -> dict[str, int]:
    """Data parallel as far as the batch goes; more devices than clips split each clip's tokens or frames among them."""
    data = min(batch, slice_.num_devices)
    return {"data": data, "sequence": slice_.num_devices // data}


def measure(name: str, slice_: Slice, known: dict[str, Any], others: Iterable[Entry] = ()) -> Entry:
    """Compiles the training step of a config with less and less memory until it fits.

    First with each remat in one go, then with the last of them and the batch in 2, 4, ... turns. `known`, {key of a
    program: what the compiler said}, holds what is not compiled again, and is added to. `others` are entries of before:
    a remat that was refused with no more of each clip on the same chip is not tried.
    """
    from vivit_jax.compile.ahead import compile_ahead
    from vivit_jax.compile.program import Target
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.data import catalog

    config = load(name)
    mesh = mesh_for(config.batch_size, slice_)
    for axis, size in mesh.items():
        config.mesh[axis] = size
    shown = {axis: size for axis, size in mesh.items() if size > 1}
    entry = Entry(name, slice_.name, config.batch_size, shown, 0, REMATS[-1], False)
    each = config.batch_size // mesh["data"]
    turns = [2**i for i in range(1, each.bit_length()) if each % 2**i == 0]
    options = [*((remat, 1) for remat in REMATS), *((REMATS[-1], parts) for parts in turns)]
    for remat, parts in options[max((_refused(other, entry) for other in others), default=0) :]:
        config.model.remat, config.optimizer.accumulate_steps = remat, parts
        experiment = Experiment.from_config(config)
        heads = dict(catalog.get(experiment.data.name).heads)
        key = _key(experiment, heads, slice_)
        try:
            if key not in known:
                target = Target.on(experiment, heads, slices.devices(slice_))
                clips = target.clips_per_part(experiment.batch_size)
                found = compile_ahead(target.lower_train(clips), target.mesh)
                known[key] = {
                    "fits": found.fits,
                    "clips": clips,
                    "peak": found.peak,
                    "available": found.available or slice_.memory,
                    "seconds": round(found.seconds, 1),
                    "says": found.message,
                }
        except ValueError as error:
            return dataclasses.replace(entry, says=str(error))
        entry = dataclasses.replace(entry, remat=remat, turns=parts, **known[key])
        if entry.fits:
            break
    return entry


def _refused(other: Entry, entry: Entry) -> int:
    """How many remats, from the first on, need not be tried for `entry`, by what was found of `other`."""
    chip, another = (one.slice.partition("-")[0] for one in (entry, other))
    if entry.config != other.config or chip != another or not other.clips:
        return 0
    shares = [math.prod(one.mesh.values()) / one.batch for one in (entry, other)]  # devices for each clip
    return REMATS.index(other.remat) if shares[1] >= shares[0] else 0  # the last is always tried: it says how much


def _key(experiment: Any, heads: Mapping[str, int], slice_: Slice) -> str:
    """What decides over the memory: the config but for names, paths and what only the host sees.

    Of the heads their number: a thousand classes more are four megabytes more.
    """
    import jax

    fields = experiment.to_dict()
    parts = [fields[name] for name in ("model", "augment", "mesh", "batch_size")]
    parts.append({name: fields["optimizer"][name] for name in _OF_MEMORY})
    text = json.dumps([parts, len(heads), str(slice_), jax.__version__], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def markdown(entries: Iterable[Entry], columns: Sequence[str]) -> str:
    """The table: for each config a line, for each slice what is needed of the memory, and how."""
    lines = [f"| config | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    by_config: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_config.setdefault(entry.config, {})[entry.slice] = entry
    for config, cells in by_config.items():
        short = config.removeprefix("configs/").replace(".py", "")
        lines.append(f"| {short} | {' | '.join(_cell(cells.get(column)) for column in columns)} |")
    return "\n".join(lines) + "\n"


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "not compiled"
    if not entry.fits:
        return f"**no**: {entry.peak / GIB:.0f} GiB" if entry.peak else "**no**: mesh"
    split = f", {entry.mesh['sequence']} devices a clip" if entry.mesh.get("sequence", 1) > 1 else ""
    turns = f" in {entry.turns} turns" if entry.turns > 1 else ""
    return f"{entry.peak / GIB:.1f} GiB, remat {entry.remat}, {entry.clips} a part{turns}{split}"


BEGIN, END = "<!-- begin: python -m vivit_jax.compile.table -->", "<!-- end -->"


def write(out: Path, entries: Iterable[Entry], columns: Sequence[str]) -> None:
    """Puts the table between the markers of the document, which stays as it is around them."""
    text = out.read_text() if out.exists() else f"# TPU slices\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{out} has no {BEGIN} and {END} to write the table between")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    out.write_text(f"{before}{BEGIN}\n\n{markdown(entries, columns)}\n{END}{after}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    slices.without_a_tpu()
    out = Path(flags.FLAGS.out)
    kept = out.with_suffix(".json")
    stored = json.loads(kept.read_text()) if kept.exists() else {"programs": {}, "entries": []}
    entries = {(e["config"], e["slice"]): Entry(**e) for e in stored["entries"]}
    try:
        recipes = {str(path) for path in Path("configs").glob("*_vivit_*.py")}
        names = flags.FLAGS.configs or sorted(recipes.union(config for config, _ in entries))
        names = [row for name in names for row in rows_of(name)]
        # The largest first: what is refused there is not tried with more clips on a device.
        for slice_ in sorted(map(slices.parse, flags.FLAGS.slices), key=lambda found: -found.num_devices):
            for name in names:
                entry = measure(name, slice_, stored["programs"], entries.values())
                entries[name, slice_.name] = entry
                said = f"{entry.peak / GIB:.1f} GiB, remat {entry.remat}" if entry.peak else entry.says
                print(f"{name} on {slice_.name}: {'fits' if entry.fits else 'does not fit'}, {said}", flush=True)
                ordered = [entries[key] for key in sorted(entries)]
                stored["entries"] = [dataclasses.asdict(e) for e in ordered]
                kept.write_text(json.dumps(stored, indent=1))
                write(out, ordered, [c for c in COLUMNS if any(e.slice == c for e in ordered)])
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def run() -> None:
    """Entry point."""
    # Defined here, so that this module can be imported beside others whose flags have the same names.
    flags.DEFINE_string("out", "docs/tpu.md", "The document whose table is written, between its two markers.")
    flags.DEFINE_list(
        "configs", [], "FILE, FILE:ROW or FILE:*, with commas. Default: the recipes of configs/ and what is there."
    )
    flags.DEFINE_list("slices", list(COLUMNS), "With commas.")
    logging.set_verbosity(logging.WARNING)
    app.run(main)


if __name__ == "__main__":
    run()
