"""The rows of a sweep, one run after another, into a table and a plot.

    python -m vivit_jax.sweep --config=configs/study.py --workdir=runs/study --seeds=0,1,2
    python -m vivit_jax.sweep --config=configs/paper/table2.py --workdir=gs://BUCKET/table2 --set=batch_size=128

A config file takes part that has `sweep()` beside `get_config()`. It returns {row: config}, in the order of the table,
where a config is a whole ConfigDict, or {dotted field: value} to be laid over `get_config()`. `{workdir}` and `{seed}`
in a text value are the sweep's folder and the run's seed, so that a row can start from what another has learnt:
`{"init_from.path": "{workdir}/image_model/seed_{seed}"}`.

Each run trains in WORKDIR/ROW/seed_SEED and leaves `row.json` there when it is done. The same command goes on where it
was: what is done is not done again, what was interrupted is resumed.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath

from vivit_jax.experiment import ConfigError, Experiment
from vivit_jax.experiment_fields import differences

DONE_FILE = "row.json"
# What a run's numbers do not depend on, or what is written into the config on the way.
_FREE = ("data.threads", "data.prefetch", "data.cache", "data.cache_gb", "data.dir", "compilation_cache")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      row: its row in the table.
      seed: of the run.
      experiment: all that it does.
      workdir: where.
    """

    row: str
    seed: int
    experiment: Experiment
    workdir: epath.Path


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run left: `metrics` by name, `parameters` and `gflops` (10^9 multiply-adds a clip, forward) of its model.

    `failure` holds the reason, and the rest is empty, where it ended in an error.
    """

    row: str
    seed: int
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    gflops: float | None = None
    failure: str | None = None


def load_module(path: epath.PathLike) -> Any:
    """The module of a config file, by its path.

    Raises:
      ConfigError: no such file, or it has no `sweep()`.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ConfigError(f"--config={path} is not a file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise ConfigError(f"{path} has no sweep(); run it with python -m vivit_jax.main, or add one: {{row: config}}")
    return module


def plan(
    module: Any,
    workdir: epath.PathLike,
    *,
    seeds: Sequence[int] | None = None,
    rows: str = "",
    changes: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The runs of a sweep, in their order: all rows with the first seed, then all with the second, and so on.

    Args:
      module: a config file's, from `load_module`.
      workdir: the folder of the sweep.
      seeds: None for the seed of each config.
      rows: regular expression that the names of the rows taken begin with; '' for all.
      changes: {dotted field: value} laid over every row.

    Raises:
      ConfigError: a row's config cannot be run, no row is left, or a row's name is no name of a folder.
    """
    configs = module.sweep()
    chosen = [row for row in configs if re.match(rows, row)]
    if not chosen:
        raise ConfigError(f"--rows={rows} leaves none of the rows {', '.join(configs)}")
    runs = []
    for seed in seeds or [None]:
        for row in chosen:
            if not re.fullmatch(r"[\w.+-]+", row):
                raise ConfigError(f"row {row!r} must be a name of letters, digits and _ . + -, for its folder's sake")
            config = _laid_over(
                module, row, configs[row], {**(changes or {}), **({} if seed is None else {"seed": seed})}
            )
            used = config.seed
            _fill_in(config, {"{workdir}": str(workdir), "{seed}": str(used)})
            if config.compilation_cache == "workdir":  # rows share programs, so they share what is compiled
                config.compilation_cache = str(epath.Path(workdir) / "compilation_cache")
            runs.append(Run(row, used, Experiment.from_config(config), epath.Path(workdir) / row / f"seed_{used}"))
    return runs


def _laid_over(module: Any, row: str, config: Any, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    if not isinstance(config, ml_collections.ConfigDict):
        changes, config = {**config, **changes}, module.get_config()
    config = ml_collections.ConfigDict(config).unlock()
    for field, value in changes.items():
        group, _, name = field.rpartition(".")
        try:
            section = config
            for part in group.split(".") if group else ():
                section = section[part]
            section[name]  # a field that does not exist is an error, with the nearest name
            section[name] = tuple(value) if isinstance(value, list) else value
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"row {row}: {field}={value!r}: {error}") from error
    return config


def _fill_in(section: ml_collections.ConfigDict, words: Mapping[str, str]) -> None:
    for name, value in list(section.items()):
        if isinstance(value, ml_collections.ConfigDict):
            _fill_in(value, words)
        elif isinstance(value, str):
            for word, text in words.items():
                value = value.replace(word, text)
            section[name] = value


def finished(run: Run) -> Finished | None:
    """What the run left when it was done; None while it is not.

    Raises:
      ConfigError: what lies in its folder was made with another config; the message says in what they differ.
    """
    path = run.workdir / DONE_FILE
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    try:
        before = Experiment.from_config(stored.pop("config"))  # fields that are newer than the run get their defaults
    except ConfigError as error:
        raise ConfigError(f"{path} holds a config that cannot be run any more: {error}") from error
    if changed := differences(before.to_dict(), run.experiment.to_dict(), without=_FREE):
        raise ConfigError(
            f"{run.workdir} holds a finished run with another config ({'; '.join(changed[:6])}); remove that folder "
            "to do it again, or give another --workdir"
        )
    return Finished(**stored)


def carry_out(runs: Sequence[Run]) -> Iterator[Finished]:
    """Does what is not done yet, run after run, and hands over what each left.

    A run that fails is told of and does not keep the others from running; what it left can be resumed.

    Raises:
      ConfigError: of a folder with another config's run, before anything is trained.
    """
    from vivit_jax.checkpointing import CheckpointError
    from vivit_jax.cost.counts import forward_count
    from vivit_jax.models import count_parameters
    from vivit_jax.train import open_data, train

    known = [finished(run) for run in runs]
    if done := sum(found is not None for found in known):
        logging.info("%d of %d runs are done already.", done, len(runs))
    for place, (run, found) in enumerate(zip(runs, known, strict=True), start=1):
        if found is None:
            logging.info("Run %d of %d: %s, seed %d, in %s", place, len(runs), run.row, run.seed, run.workdir)
            began = time.monotonic()
            try:
                metrics = train(run.experiment, run.workdir)
                model = run.experiment.model_config(open_data(run.experiment)[0].heads)
                found = Finished(run.row, run.seed, metrics, count_parameters(model), forward_count(model) / 1e9)
            except (ValueError, OSError, RuntimeError, ArithmeticError, CheckpointError) as error:
                logging.exception("Run %s, seed %d failed", run.row, run.seed)
                found = Finished(run.row, run.seed, failure=f"{type(error).__name__}: {error}")
            else:
                _leave(run, found)
            logging.info("Run %d of %d took %.0f s.", place, len(runs), time.monotonic() - began)
            jax.clear_caches()  # the programs of this run's model, which no other may need
        yield found


def _leave(run: Run, found: Finished) -> None:
    if jax.process_index() == 0:
        record = dataclasses.asdict(found) | {"config": run.experiment.to_dict()}
        (run.workdir / DONE_FILE).write_text(json.dumps(record, indent=2))


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE texts as {field: value}; a value is a Python literal, or else a text.

    Raises:
      ConfigError: a text without '='.
    """
    changes = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set={text} must be FIELD=VALUE, as in --set=optimizer.learning_rate=0.1")
        try:
            changes[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[field] = value
    return changes


def main(argv: list[str]) -> None:
    from vivit_jax import checkpointing, distributed, logs, sweep_table

    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logs.set_up()
    given = flags.FLAGS
    with distributed.ending_together():
        results: list[Finished] = []
        try:
            distributed.initialise()
            module, seeds = load_module(given.config), [int(seed) for seed in given.seeds]
            runs = plan(module, given.workdir, seeds=seeds, rows=given.rows, changes=parse_changes(given.set))
            for found in carry_out(runs):
                results.append(found)
                # After every run, so that what is known can be looked at while the rest is still to come.
                sweep_table.write(results, given.workdir, epath.Path(given.config).stem, given.metrics)
        except (ValueError, OSError, checkpointing.CheckpointError) as error:
            sys.exit(f"error: {error}")
        if jax.process_index() == 0:
            print(sweep_table.markdown(results, given.metrics))
        if failed := [found for found in results if found.failure]:
            sys.exit("\n".join(f"failed: {found.row}, seed {found.seed}: {found.failure}" for found in failed))


def run() -> None:
    """Entry point."""
    # Defined here, so that this module can be imported beside others whose flags have the same names.
    flags.DEFINE_string("config", None, "Config file with sweep().")
    flags.DEFINE_string("workdir", None, "Folder of the sweep: its runs, and its tables.")
    flags.DEFINE_list("seeds", [], "Seeds, with commas; each row is run with each. Default: the config's.")
    flags.DEFINE_string("rows", "", "Only rows whose name begins with this regular expression.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE, laid over every row; may be given again.")
    flags.DEFINE_list("metrics", [], "Columns of the table. Default: every top1, or what there is.")
    flags.mark_flags_as_required(["config", "workdir"])
    logging.set_verbosity(logging.INFO)
    app.run(main)


if __name__ == "__main__":
    run()
