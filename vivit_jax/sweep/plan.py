"""The runs of a sweep: their configs, folders and stored results; one after another."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences, flat
from vivit_jax.config.files import load_module

DONE_FILE = "row.json"
# Fields that a run's results do not depend on.
IGNORED_FIELDS = ("data.threads", "data.prefetch", "data.cache", "data.cache_gb", "data.dir", "compilation_cache")


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of a sweep with one seed."""

    row: str
    seed: int
    experiment: Experiment
    workdir: epath.Path


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
    """Loads a config file that defines `sweep()`."""
    module = load_module(path)
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
    chosen = [row for row in configs if re.match(rows, row)]
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
            runs.append(Run(row, config.seed, Experiment.from_config(config), workdir / row / f"seed_{config.seed}"))
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


def save_result(run: Run, result: Result) -> None:
    """Marks a run as finished."""
    record = dataclasses.asdict(result) | {"config": run.experiment.to_dict()}
    (run.workdir / DONE_FILE).write_text(json.dumps(record, indent=2))


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
                result = Result(run.row, run.seed, metrics, count_parameters(model), forward_count(model) / 1e9)
                if jax.process_index() == 0:
                    save_result(run, result)
            except (ValueError, OSError, RuntimeError, ArithmeticError, CheckpointError) as error:
                logging.exception("Run %s, seed %d failed", run.row, run.seed)
                result = Result(run.row, run.seed, failure=f"{type(error).__name__}: {error}")
            jax.clear_caches()  # other rows rarely share this run's programs
        yield result
