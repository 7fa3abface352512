"""Parses command lines of a program without running it: `python -m tests.helpers.dry_run MODULE`, JSON argv lists on
standard input; prints a JSON list with the error of each, or null."""

import argparse
import io
import json
import os
import re
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout

from absl import app, flags


class Parsed(Exception):
    """The command line is valid."""


def dry_app_run(main, argv=None, flags_parser=None):
    rest = (flags_parser or flags.FLAGS)(sys.argv if argv is None else argv)
    if len(rest) > 1 and not re.search("predict|features|search", sys.argv[0]):
        raise SystemExit(f"unexpected arguments: {' '.join(rest[1:])}")
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    if config is not None and not isinstance(config, str):
        from vivit_jax.config.experiment import Experiment

        Experiment.from_config(config)
    raise Parsed


def parse(module: str, arguments: list[str]) -> str | None:
    """Returns the error of a command line, None for a valid one."""
    sys.argv = [module, *arguments]  # `run_module` replaces the first by the file
    output = io.StringIO()
    try:
        with redirect_stderr(output), redirect_stdout(output):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed:
        return None
    except SystemExit as stop:
        return f"exit {stop.code}: {output.getvalue()[-600:]}" if stop.code else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "the program ran instead of only parsing its command line"


def main() -> None:
    module = sys.argv[1]
    app.run = dry_app_run
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_args
    import vivit_jax.config.experiment  # noqa: F401  loaded once, for all of the processes below

    errors = []
    for arguments in json.load(sys.stdin):
        # A process each: absl's flags are global, and remember what was parsed before.
        read, write = os.pipe()
        if not os.fork():
            os.write(write, json.dumps(parse(module, arguments)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            errors.append(json.loads(answer.read() or '"the process died"'))
        os.wait()
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
