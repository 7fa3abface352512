"""The runs of a sweep: configs of its rows, folders, what is finished."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_collections
from etils import epath

from vivit_jax.config.experiment import ConfigError, Experiment
from vivit_jax.config.fields import differences
from vivit_jax.config.files import load_module

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


def load_sweep(path: epath.PathLike) -> ModuleType:
    """Loads a config file that defines `sweep()`.

    Raises:
      ConfigError: there is no such file, or it has no `sweep()`.
    """
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise ConfigError(f"{path} has no sweep(); run it with python -m vivit_jax.main, or add one: {{row: config}}")
    return module


def plan(
    module: ModuleType,
    workdir: epath.PathLike,
    *,
    seeds: Sequence[int] | None = None,
    rows: str = "",
    changes: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The runs of a sweep, in their order: all rows with the first seed, then all with the second, and so on.

    Args:
      module: a config file's, from `load_sweep`.
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


def _laid_over(module: ModuleType, row: str, config: Any, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
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
