"""`python -m vivit_jax.serve`: serves a page and a REST interface; see the package."""

import dataclasses
import socket
from pathlib import Path

from absl import app, flags, logging

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config import flags as command_line
from vivit_jax.predict import Predictor, inputs
from vivit_jax.serve.decode import Limits
from vivit_jax.utils import logs


def main(argv: list[str]) -> None:
    import uvicorn  # of an extra, and --help needs none

    from vivit_jax.serve.app import create_app, warm_up

    options = flags.FLAGS
    if not (paths := [*options.workdir, *options.checkpoint]):
        raise app.UsageError("give --workdir, a run, or --checkpoint, a checkpoint or pretrained weights")
    logs.configure_logging()
    models: dict[str, Predictor] = {}
    with command_line.exit_on(checkpointing.CheckpointError, ValueError, OSError):
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
        for path in paths:
            base = name = Path(path).absolute().name
            while name in models:
                name = f"{base} {len(models) + 1}"
            models[name] = Predictor(path, **inputs.inference_options())
            warm_up(models[name])
        limits = Limits(**{field.name: options[field.name].value for field in dataclasses.fields(Limits)})
        server = uvicorn.Server(uvicorn.Config(create_app(models, limits), log_level="warning", access_log=False))
    host, port = listening.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.run(sockets=[listening])


def run() -> None:
    """Defines the flags and runs the program."""
    flags.DEFINE_multi_string("workdir", [], "A run, whose best checkpoint is used, or the folder of one step.")
    flags.DEFINE_multi_string("checkpoint", [], "Weights in any format that vivit_jax.convert reads.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all, for everyone who can reach them.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0: a free one.", lower_bound=0)
    inputs.define_inference()
    for field in dataclasses.fields(Limits):
        define = flags.DEFINE_integer if isinstance(field.default, int) else flags.DEFINE_float
        define(field.name, field.default, field.metadata["help"], lower_bound=0 if field.name == "queue" else 1)
    command_line.run(main, verbosity=logging.WARNING)


if __name__ == "__main__":
    run()
