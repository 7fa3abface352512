"""`python -m vivit_jax.report --workdir=RUN`: writes RUN/report.html anew."""

from __future__ import annotations

import sys

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; gets report.html.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # After the flags are parsed, so that --help answers at once.
    from vivit_jax import report
    from vivit_jax.utils import logs

    logs.configure_logging()
    try:
        print(report.make(_WORKDIR.value))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def run() -> None:
    """Entry point."""
    flags.mark_flag_as_required("workdir")
    logging.set_verbosity(logging.WARNING)
    app.run(main)


if __name__ == "__main__":
    run()
