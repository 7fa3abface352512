"""`python -m vivit_jax.report --workdir=RUN`: writes RUN/report.html."""

from absl import flags, logging

from vivit_jax import report
from vivit_jax.config import flags as command_line
from vivit_jax.utils import logs

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; report.html is written there.")


def main(argv: list[str]) -> None:
    logs.configure_logging()
    with command_line.exit_on(OSError, ValueError):
        print(report.make(_WORKDIR.value))


if __name__ == "__main__":
    command_line.run(main, required=("workdir",), verbosity=logging.WARNING)
