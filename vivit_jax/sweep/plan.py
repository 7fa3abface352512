"""The runs of a sweep: their configs, folders and stored results."""

import ast
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

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
            _fill_placeholders(config, {"{workdir}": str(workdir), "{seed}": str(config.seed)})
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


def _fill_placeholders(config: ConfigDict, values: Mapping[str, str]) -> None:
    for field, text in flat(config.to_dict()).items():
        if isinstance(text, str):
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            config.update_from_flattened_dict({field: text})


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
