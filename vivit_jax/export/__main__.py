"""`python -m vivit_jax.export`: ships a trained model in other formats; see the package."""

from absl import flags, logging

from vivit_jax.config import flags as command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "A run, whose best checkpoint is used, or the folder of one step.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "In its place, weights in any format that convert reads.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write, which must not exist.")
_FORMAT = flags.DEFINE_enum("format", None, ["stablehlo", "savedmodel", "huggingface"], "See docs/export.md.")
_WEIGHTS = flags.DEFINE_enum("weights", "params", ["params", "ema"], "The parameters, or their EMA.")


def main(argv: list[str]) -> None:
    from vivit_jax.checkpoint import CheckpointError
    from vivit_jax.export import export
    from vivit_jax.utils import logs

    logs.configure_logging()
    with command_line.exit_on(CheckpointError, ValueError, OSError):
        if (_WORKDIR.value is None) == (_CHECKPOINT.value is None):
            raise ValueError("give --workdir, a run, or --checkpoint, a checkpoint or pretrained weights")
        export(_WORKDIR.value or _CHECKPOINT.value, _OUTPUT.value, _FORMAT.value, _WEIGHTS.value)
        print(f"written: {_OUTPUT.value} ({_FORMAT.value}); its README.md shows how to load it")


if __name__ == "__main__":
    command_line.run(main, required=("output", "format"), verbosity=logging.WARNING)
