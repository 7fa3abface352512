"""Command lines of the programs: config files, by path or name, with their overrides; usage errors, exit codes."""

import contextlib
import difflib
import functools
import importlib.resources
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from vivit_jax.config.fields import ConfigError, check_exists, paths, plain
from vivit_jax.utils import terminal

_PACKAGE = "vivit_jax.configs"  # the repository's configs/, as the wheel installs it
USAGE_ERROR = 2  # exit code, as of argparse: starting again will not help


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
    if (spec := importlib.util.spec_from_file_location(path.stem, path)) is None:
        raise ConfigError(f"{path} is no Python file with a get_config()")
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
        if row and not inspect.signature(module.get_config).parameters:
            raise ConfigError(f"{file} has no rows: give it without :{row}")
        config = module.get_config(row) if row else module.get_config()
    except (AttributeError, KeyError) as error:  # no get_config(), or a field that a locked ConfigDict does not have
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{file}: get_config() must return a ConfigDict")
    return config


class _ConfigParser(flags.ArgumentParser):
    """Parses the value of `--config`, a file or the name of a packaged config."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        return load_config(path).lock()


def define_config(
    help_string: str, flag_values: flags.FlagValues = flags.FLAGS, sys_argv: list[str] | None = None
) -> flags.FlagHolder:
    """Defines `--config=FILE|NAME[:ROW]`; `--config.FIELD=VALUE` overrides a field of it."""
    holder = config_flags.DEFINE_config_file("config", None, help_string, flag_values, sys_argv=sys_argv)
    flag_values["config"].parser = _ConfigParser()
    return holder


def parse(argv: Sequence[str], known: flags.FlagValues = flags.FLAGS, positional: bool = True) -> list[str]:
    """Parses the flags of a program (`argv` as `sys.argv`) and returns the rest, the program's name first.

    Exits with 2, after one message on standard error: a config file that is missing or cannot be loaded, an unknown
    field (with the nearest name) or flag, a value of the wrong type, without `positional` an argument that is no flag.
    """
    try:
        _check_overrides(argv)
        rest = known(list(argv))
        if rest[1:] and not positional:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}")
        return rest
    except (flags.Error, ConfigError, IndexError) as error:  # IndexError: FIELD[0] of a tuple
        sys.stderr.write(f"error: {error}{terminal.dash_advice(argv[1:])}\n--help shows the flags.\n")
        sys.exit(USAGE_ERROR)


def _check_overrides(argv: Sequence[str]) -> None:
    """Checks that the fields of `--config.FIELD` exist, since ml_collections ends in a traceback where one does not."""
    names = [match[1] for argument in argv if (match := re.match(r"--?(?:no)?config\.([^=\[]+)", argument))]
    values = [re.fullmatch(r"--?config(?:=(.*))?", argument) for argument in argv]
    config = next((match[1] or (*argv, "")[i + 1] for i, match in enumerate(values) if match), None)
    if names and config:
        fields = dict(paths(plain(load_config(config))))
        for name in names:
            check_exists(name, fields)


def run(
    main: Callable[[list[str]], None],
    required: Sequence[str] = (),
    *,
    verbosity: int = logging.INFO,
    positional: bool = False,
) -> None:
    """Runs a program: parses its flags, of which `required` must be given, and calls `main`; see `parse`."""
    logging.set_verbosity(verbosity)
    flags.mark_flags_as_required(list(required))

    def checked(argv: list[str]) -> None:
        try:
            main(argv)
        except (RuntimeError, AssertionError):
            from vivit_jax.utils import devices  # --help needs no jax

            devices.exit_without_devices()
            raise

    app.run(checked, flags_parser=functools.partial(parse, positional=positional))


@contextlib.contextmanager
def exit_on(*errors: type[Exception]) -> Iterator[None]:
    """Ends the program with the message alone of an error that its user can mend; --verbosity=1 logs the traceback."""
    try:
        yield
    except errors as error:
        logging.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"error: {error}\n(--verbosity=1 shows the traceback)")
