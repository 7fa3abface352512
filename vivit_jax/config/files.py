"""Loading of config files by their path."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import ml_collections

from vivit_jax.config.fields import ConfigError


def load_module(path: str | os.PathLike) -> ModuleType:
    """Loads a config file as a module: `get_config()`, and where it has them `ROWS`, `SLICES`, `sweep()`.

    Raises:
      ConfigError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(name: str) -> ml_collections.ConfigDict:
    """Loads the config of FILE or FILE:ROW, as `--config` does.

    Raises:
      ConfigError: there is no such file.
    """
    file, _, row = name.partition(":")
    get_config = load_module(file).get_config
    return get_config(row) if row else get_config()


def expand_rows(name: str) -> list[str]:
    """Returns FILE:ROW of each row for `FILE:*`, and any other name itself.

    Raises:
      ConfigError: there is no such file, or it has no `ROWS`.
    """
    file, _, row = name.partition(":")
    if row != "*":
        return [name]
    rows = getattr(load_module(file), "ROWS", None)
    if not rows:
        raise ConfigError(f"{name}: {file} has no ROWS; name the file alone")
    return [f"{file}:{row}" for row in rows]
