"""Config files: found by path or by name, loaded as modules."""

import difflib
import importlib.resources
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import ml_collections

from vivit_jax.config.fields import ConfigError

_PACKAGE = "vivit_jax.configs"  # the repository's configs/, as the wheel installs it


def find_config(name: str | os.PathLike) -> Path:
    """Returns the file of a config, a path or packaged name (`paper/table2`); ConfigError with the nearest names."""
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(__file__).parents[2] / "configs"  # beside the package, in a source checkout
    if importlib.util.find_spec(_PACKAGE):
        folder = Path(str(importlib.resources.files(_PACKAGE)))
    files = [file for file in sorted(folder.rglob("*.py")) if not file.name.startswith("_")]
    packaged = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    if str(name) in packaged:
        return packaged[str(name)]
    known = [*packaged, *(f"configs/{other}.py" for other in packaged if (Path("configs") / f"{other}.py").is_file())]
    close = difflib.get_close_matches(str(name), known, n=1) or difflib.get_close_matches(path.stem, packaged, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(packaged)}"
    raise ConfigError(f"there is no config {name}; {hint}")


def load_module(name: str | os.PathLike) -> ModuleType:
    """Loads a config file (see `find_config`) as a module: `get_config()`, for some `ROWS`, `SLICES`, `sweep()`."""
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(name: str) -> ml_collections.ConfigDict:
    """Loads the config of NAME or NAME:ROW, as `--config` does; NAME as in `find_config`.

    Raises ConfigError: there is no such file, row or `get_config()`, or it sets a field that does not exist.
    """
    file, _, row = name.partition(":")
    module = load_module(file)
    try:
        config = module.get_config(row) if row else module.get_config()
    except (AttributeError, KeyError) as error:  # no get_config(), or a field that a locked ConfigDict does not have
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{file}: get_config() must return a ConfigDict")
    return config
