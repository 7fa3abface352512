"""Flags and config overrides of the command line, with errors that say which field was meant.

ml_collections ends in a traceback where `--config.x=` names no field; `parse` stands in for absl's parser:
`app.run(main, flags_parser=command_line.parse)`.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections
from absl import app, flags

from vivit_jax.config import renamed

EXIT_CODE = 2  # wrong usage, as of argparse: starting again will not help


def parse(argv: Sequence[str], known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags of a program with one `--config` flag (`config_flags.DEFINE_config_file`).

    Args:
      argv: the program's name and its arguments, as `sys.argv`.
      known: the flags that are defined.

    Returns:
      The arguments that are no flags, the program's name first.

    Raises:
      SystemExit: 2, after one message on standard error: a config file that is not there or cannot be loaded, a field
        that does not exist (with the nearest name), a value of the wrong type, an unknown flag.
    """
    try:
        rest = known(list(argv))
    except flags.IllegalFlagValueError as error:
        _leave(_of_value(str(error), known))
    except flags.Error as error:
        _leave(str(error))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        _leave(_of_field(argv, known, error))
    # ml_collections puts the error of a missing file off until the config is used.
    if known["config"].present and not isinstance(known["config"].value, ml_collections.ConfigDict):
        _leave(_of_file(argv))
    return rest


def _leave(message: str) -> None:
    sys.stderr.write(f"error: {message}\n--help shows the flags.\n")
    sys.exit(EXIT_CODE)


def _given_path(argv: Sequence[str]) -> str | None:
    for place, argument in enumerate(argv):
        found = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
        if found:
            return found[1] if found[1] is not None else next(iter(argv[place + 1 :]), None)
    return None


def _of_file(argv: Sequence[str]) -> str:
    path = (_given_path(argv) or "").split(":", 1)[0]
    if Path(path).is_file():
        return f"--config={path} holds no config: its get_config() must return a ConfigDict"
    others = [str(p) for p in sorted(Path("configs").rglob("*.py")) if not p.name.startswith("_")]
    return f"--config={path}: there is no such file; {_nearest(path, others, 'configs here: ')}"


def _of_field(argv: Sequence[str], flag_values: flags.FlagValues, error: Exception) -> str:
    """What is wrong with the overrides: the config is loaded again, and each field looked for in it."""
    path = _given_path(argv)
    if path is None or not Path(path.split(":", 1)[0]).is_file():
        return _of_file(argv)
    config = flag_values["config"].parser.parse(path)
    known = dict(_fields(config))
    for argument in argv:
        found = re.match(r"--?(no)?config\.([^=]+)", argument)
        name = found and found[2]
        if name in renamed.FIELDS:
            return f"config.{name} is now called config.{renamed.FIELDS[name]}"
        if name and name.split("[", 1)[0] not in known:
            leaf = name.rsplit(".", 1)[-1]
            elsewhere = [other for other in known if other.rsplit(".", 1)[-1] == leaf]
            if elsewhere:
                return f"config.{name} does not exist; did you mean config.{' or config.'.join(elsewhere)}?"
            group = _group(config, name.rpartition(".")[0])
            if group is None:
                return f"config.{name} does not exist; {_nearest(name, list(known), 'known: config.', 'config.')}"
            here = [other for other in known if other.rpartition(".")[0] == group]
            if not here:
                whole = f"--config.{group}=\"{{'{leaf}': VALUE}}\""
                return f"config.{name} cannot be set alone; config.{group} takes any names, as a whole: {whole}"
            leaves = [other.rpartition(".")[2] for other in here]
            prefix = f"config.{group}." if group else "config."
            return f"config.{name} does not exist; {_nearest(leaf, leaves, f'fields of {prefix[:-1]}: ', prefix)}"
    return f"--config={path}: {type(error).__name__}: {error}"


def _group(config: Mapping, path: str) -> str | None:
    """`path` where it is a group of fields, '' the whole; None for no group."""
    for part in filter(None, path.split(".")):
        config = config.get(part) if isinstance(config, ml_collections.ConfigDict) else None
    return path if isinstance(config, ml_collections.ConfigDict) else None


def _fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in config:
        value = config[name]
        yield f"{prefix}{name}", value
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")


def _of_value(message: str, known: flags.FlagValues) -> str:
    """absl's message about a value, with what the field takes, and without the traceback of a config file."""
    found = re.match(r"flag --config\.([^=]+)=(.*?): (.*)", message, re.DOTALL)
    if not found:
        return re.split(r"^(?:\w+\.)*\w*(?:Error|Exception): ", message, flags=re.MULTILINE)[-1].strip()
    name, value, reason = found.groups()
    flag = known[f"config.{name}"]
    takes = "" if flag.default is None else f"; it takes {flag.parser.flag_type()}, by default {flag.default!r}"
    return f"config.{name}={value} cannot be set: {reason}{takes}"


def _nearest(name: str, known: Sequence[str], otherwise: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else otherwise + ", ".join(known)


def run(main: object, required: Sequence[str] = ("config",)) -> None:
    """`absl.app.run` with this parser and with flags that must be given."""
    flags.mark_flags_as_required(list(required))
    app.run(main, flags_parser=parse)
