"""Runs the rows of a sweep one after another, and writes a table and a plot.

    python -m vivit_jax.sweep --config=configs/study.py --workdir=runs/study --seeds=0,1,2
    python -m vivit_jax.sweep --config=configs/paper/table2.py --workdir=gs://BUCKET/table2 --set=batch_size=128

The config file defines `sweep()` beside `get_config()`. It returns {row: config} in the order of the table, where a
config is a ConfigDict, or {dotted field: value} to override in `get_config()`. `{workdir}` and `{seed}` in a string
value are the folder of the sweep and the seed of the run, so that a row can start from the result of another row:
`{"init_from.path": "{workdir}/image_model/seed_{seed}"}`. A config with `ROWS` and no `sweep()` runs all of them.

Each run trains in WORKDIR/ROW/seed_SEED and writes `row.json` there in the end. The same command continues a sweep.
"""

import ast
import dataclasses
import functools
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from vivit_jax import finetuning
from vivit_jax.config import flags as command_line
from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences, flat
from vivit_jax.utils import plots, storage, tables

DONE_FILE = "row.json"
# Fields that a run's results do not depend on.
IGNORED_FIELDS = ("data.threads", "data.prefetch", "data.cache", "data.cache_gb", "data.dir", "compilation_cache")


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of a sweep with one seed."""

    row: str
    seed: int
    config: ConfigDict
    workdir: epath.Path

    @functools.cached_property
    def experiment(self) -> Experiment:
        return finetuning.experiment_of(self.config, self.workdir)  # may read the weights of an earlier row


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run. A failed run has only a `failure`, the error's text."""

    row: str
    seed: int
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    gflops: float | None = None  # 10^9 multiply-adds of one clip's forward pass
    failure: str | None = None


def load_sweep(path: epath.PathLike) -> ModuleType:
    """Loads a config file that defines `sweep()`, or `ROWS`, which are then all rows."""
    module = command_line.load_module(path)
    if hasattr(module, "ROWS") and not hasattr(module, "sweep"):
        module.sweep = lambda: {row: module.get_config(row) for row in module.ROWS}
    if not hasattr(module, "sweep"):
        raise ConfigError(f"{path} has no sweep(); run it with python -m vivit_jax.main, or add one: {{row: config}}")
    return module


def plan(
    module: ModuleType,
    workdir: epath.PathLike,
    *,
    seeds: Sequence[int] = (),
    rows: str = "",
    overrides: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Returns the runs of a sweep: all rows with the first seed, then all with the second, and so on.

    Without `seeds` each config has its own; `rows` is a regular expression for the beginning of the rows' names;
    `overrides`, {dotted field: value}, apply to every row.
    """
    workdir, configs = epath.Path(workdir), module.sweep()
    try:
        chosen = [row for row in configs if re.match(rows, row)]
    except re.error as error:
        raise ConfigError(f"--rows={rows} is no regular expression: {error}") from error
    if not chosen:
        raise ConfigError(f"--rows={rows} matches none of the rows {', '.join(configs)}")
    if invalid := [row for row in chosen if not re.fullmatch(r"[\w.+-]+", row)]:
        raise ConfigError(f"row {invalid[0]!r} names a folder: use letters, digits and _ . + - only")
    runs = []
    for seed in seeds or [None]:
        for row in chosen:
            config, fields = configs[row], dict(overrides or {}) | ({} if seed is None else {"seed": seed})
            if not isinstance(config, ConfigDict):
                config, fields = module.get_config(), {**config, **fields}
            config = _apply_overrides(row, config, fields)
            for field, value in flat(config.to_dict()).items():
                if isinstance(value, str):
                    filled = value.replace("{workdir}", str(workdir)).replace("{seed}", str(config.seed))
                    config.update_from_flattened_dict({field: filled})
            if config.compilation_cache == "workdir":  # rows share compiled programs
                config.compilation_cache = str(workdir / "compilation_cache")
            Experiment.from_config(config)  # raises before anything is trained
            runs.append(Run(row, config.seed, config, workdir / row / f"seed_{config.seed}"))
    return runs


def _apply_overrides(row: str, config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict(config).lock()  # locked: an unknown field is an error, with the nearest name
    for field, value in overrides.items():
        try:
            config.update_from_flattened_dict({field: tuple(value) if isinstance(value, list) else value})
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"row {row}: {field}={value!r}: {error}") from error
    return config


def load_result(run: Run) -> Result | None:
    """Returns the result of a finished run, None for an unfinished one; ConfigError if it had another config."""
    path = run.workdir / DONE_FILE
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    before = Experiment.from_config(stored.pop("config"))  # newer fields get their defaults
    if changed := differences(before.to_dict(), run.experiment.to_dict(), without=IGNORED_FIELDS):
        problem = f"{run.workdir} holds a finished run with another config ({'; '.join(changed[:6])})"
        raise ConfigError(f"{problem}; remove that folder to repeat the run, or give another --workdir")
    return Result(**stored)


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Parses FIELD=VALUE texts; a value is a Python literal, else a string."""
    overrides = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set={text} must be FIELD=VALUE, as in --set=optimizer.learning_rate=0.1")
        try:
            overrides[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            overrides[field] = value
    return overrides


def run_all(runs: Sequence[Run]) -> Iterator[Result]:
    """Trains the unfinished runs one after another and yields the result of every run.

    A run that fails is logged and does not stop the others; a later sweep resumes it. ConfigError, before anything is
    trained, where a folder holds a run with another config.
    """
    from vivit_jax import train  # here: --help needs none of it
    from vivit_jax.checkpoint import CheckpointError
    from vivit_jax.cost.counts import forward_count
    from vivit_jax.data import open as data_open
    from vivit_jax.models import count_parameters

    results = [load_result(run) for run in runs]
    logging.info("%d of %d runs are finished.", sum(result is not None for result in results), len(runs))
    for number, (run, result) in enumerate(zip(runs, results, strict=True), start=1):
        if result is None:
            logging.info("Run %d of %d: %s, seed %d, in %s", number, len(runs), run.row, run.seed, run.workdir)
            try:
                metrics = train.train(run.experiment, run.workdir)
                model = run.experiment.model_config(data_open.open_data(run.experiment.data)[0].heads)
                gflops = forward_count(model, run.experiment.pretrain) / 1e9
                result = Result(run.row, run.seed, metrics, count_parameters(model), gflops)
                if jax.process_index() == 0:
                    record = dataclasses.asdict(result) | {"config": run.experiment.to_dict()}
                    storage.write(run.workdir / DONE_FILE, json.dumps(record, indent=2))
            except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, CheckpointError) as error:
                logging.exception("Run %s, seed %d failed", run.row, run.seed)
                result = Result(run.row, run.seed, failure=f"{type(error).__name__}: {error}")
            jax.clear_caches()  # other rows rarely share this run's programs
        yield result


def columns(results: Sequence[Result]) -> list[str]:
    """Returns the metrics to show: every `top1`, else all."""
    available = list(dict.fromkeys(name for result in results for name in result.metrics))
    return [name for name in available if name.endswith("top1")] or available


def mean_and_deviation(results: Sequence[Result], row: str, metric: str) -> tuple[float, float | None] | None:
    """Returns mean and standard deviation (None for one seed) of a metric over a row's seeds; None for no run."""
    values = [result.metrics[metric] for result in results if result.row == row and metric in result.metrics]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_cell(value: tuple[float, float | None] | None, scale: float = 100, digits: int = 1) -> str:
    """Returns 'MEAN ± DEVIATION', by default in percent."""
    return "" if value is None else " ± ".join(f"{scale * x:.{digits}f}" for x in value if x is not None)


def markdown(results: Sequence[Result]) -> str:
    """Returns the table; rates are percentages, losses are unscaled."""
    shown = columns(results)
    rows = []
    for row in dict.fromkeys(result.row for result in results):
        done = [result for result in results if result.row == row and not result.failure]
        failed = sum(result.row == row for result in results) - len(done)
        cells = [row]
        for name in shown:
            scale, digits = (1, 3) if name.endswith("loss") else (100, 1)
            cells.append(format_cell(mean_and_deviation(results, row, name), scale, digits))
        cells += [f"{done[0].parameters:,}", f"{done[0].gflops:.3g}"] if done else ["", ""]
        rows.append([*cells, f"{len(done)} ({failed} failed)" if failed else len(done)])
    return tables.to_markdown(["row", *shown, "parameters", "GFLOPs", "runs"], rows) + "\n"


def to_csv(results: Sequence[Result]) -> str:
    """Returns one line for each run, with all its metrics."""
    names = sorted({name for result in results for name in result.metrics})
    metrics = ([result.metrics.get(name, "") for name in names] for result in results)
    rows = ([r.row, r.seed, *m, r.parameters, r.gflops, r.failure or ""] for r, m in zip(results, metrics, strict=True))
    return tables.to_csv(["row", "seed", *names, "parameters", "gflops", "failure"], rows)


def write(results: Sequence[Result], workdir: epath.PathLike, name: str) -> None:
    """Writes `tables/NAME.md`, `.csv` and `.png` into the sweep's folder."""
    folder = epath.Path(workdir) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(folder / f"{name}.md", markdown(results))
    storage.write(folder / f"{name}.csv", to_csv(results))
    if shown := columns(results):
        with plots.optional(f"the table {name}"):
            plots.save(_bars(results, shown, name), folder / f"{name}.png")


def _bars(results: Sequence[Result], metrics: Sequence[str], title: str) -> Any:
    """Draws a group of bars for each row, a bar for each metric, error bars for the deviation over the seeds."""
    rows, height = list(dict.fromkeys(result.row for result in results)), 0.8 / len(metrics)
    size = (8, 1.2 + 0.22 * len(rows) * (1 + len(metrics)))
    with plots.drawing(1, figsize=size, layout="constrained") as (figure, axes):
        for i, metric in enumerate(metrics):
            values = [(y, mean_and_deviation(results, row, metric)) for y, row in enumerate(rows)]
            bars = [(y + (i - (len(metrics) - 1) / 2) * height, *value) for y, value in values if value is not None]
            positions, means, deviations = zip(*bars, strict=True)
            errors = [x or 0.0 for x in deviations]
            axes.barh(positions, means, height * 0.9, xerr=errors, label=plots.readable(metric), capsize=2)
        axes.set_yticks(range(len(rows)), map(plots.readable, rows))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8)
        axes.set(title=plots.readable(title), xlabel="mean over the seeds, and standard deviation")
    return figure


def main(argv: list[str]) -> None:
    from vivit_jax import distributed
    from vivit_jax.checkpoint import CheckpointError
    from vivit_jax.utils import logs

    logs.configure_logging()
    options = flags.FLAGS
    with distributed.synchronized_exit():
        results: list[Result] = []
        with command_line.exit_on(ValueError, OSError, CheckpointError):
            distributed.initialise()
            module, seeds = load_sweep(options.config), [int(seed) for seed in options.seeds]
            overrides = parse_overrides(options.set)
            runs = plan(module, options.workdir, seeds=seeds, rows=options.rows, overrides=overrides)
            for result in run_all(runs):
                results.append(result)
                if jax.process_index() == 0:  # after every run, so that intermediate results are visible
                    write(results, options.workdir, epath.Path(options.config).stem)
        if jax.process_index() == 0:
            print(markdown(results))
        if failures := [f"failed: {r.row}, seed {r.seed}: {r.failure}" for r in results if r.failure]:
            sys.exit("\n".join(failures))


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "Config with sweep() or ROWS: a file, or the name of a packaged config.")
    flags.DEFINE_string("workdir", None, "Folder of the sweep, for its runs and tables.")
    flags.DEFINE_list("seeds", [], "Comma-separated seeds; each row runs with each. Default: the config's seed.")
    flags.DEFINE_string("rows", "", "Only rows whose name begins with this regular expression.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE, an override for every row; may be repeated.")
    command_line.run(main, required=("config", "workdir"))
