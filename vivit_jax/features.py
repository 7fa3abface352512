"""Writes the features of video files, the input of the model's head: a vector for each, or its tokens.

python -m vivit_jax.features --workdir=RUN --out=features.npz folder "more/**/*.mp4"   # or features.parquet
"""

import importlib
import sys
from collections.abc import Iterable, Mapping

import numpy as np
from absl import flags, logging

from vivit_jax.config import flags as command_line
from vivit_jax.models import inference
from vivit_jax.predict import Predictor, inputs
from vivit_jax.probe.features import feature_step
from vivit_jax.utils import storage, terminal


def extract(predictor: Predictor, paths: Iterable[storage.PathLike], tokens: bool = False) -> dict[str, np.ndarray]:
    """Returns {path: features float32 [d], or tokens [V, N, d]}, see `feature_step`; logs the unreadable files.

    Raises ValueError where no file can be read.
    """
    program, found = inference.jit(feature_step(predictor.model, tokens), predictor.model.config), {}
    for path, views, outputs in predictor.run(program, predictor.read(paths)):
        if isinstance(views, Exception):
            logging.error("%s", views if str(path) in str(views) else f"{path}: {views}")
        else:
            found[terminal.printable(str(path))] = outputs["features"]
    if not found:
        raise ValueError("none of the files could be read as a video")
    return found


def save(file: storage.PathLike, features: Mapping[str, np.ndarray], checkpoint: str) -> None:
    """Writes `path` [N], `features` or `tokens` [N, ...] as .npz; as .parquet flat, their `shape` in the metadata."""
    paths, values = list(features), np.stack(list(features.values()))
    name = "features" if values.ndim == 2 else "tokens"
    with storage.written(file) as partial, open(partial, "wb") as opened:
        if not str(file).endswith(".parquet"):
            return np.savez(opened, path=paths, checkpoint=checkpoint, **{name: values})
        import pyarrow.parquet

        flat = pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values[0].size)
        metadata = {"checkpoint": checkpoint, "shape": str(values.shape)}
        pyarrow.parquet.write_table(pyarrow.table({"path": paths, name: flat}, metadata=metadata), opened)


def main(argv: list[str]) -> None:
    values = flags.FLAGS
    with command_line.exit_on(OSError, ValueError):  # what would fail at the end fails now
        storage.path(values.out).parent.mkdir(parents=True, exist_ok=True)
        if values.out.endswith(".parquet"):
            importlib.import_module("pyarrow.parquet")
    predictor, files = inputs.start(argv[1:], classifier=False)
    with command_line.exit_on(OSError, ValueError):
        features = extract(predictor, files, values.tokens)
        save(values.out, features, predictor.path)
    if unread := len(set(files)) - len(features):
        sys.exit(f"{unread} of {len(set(files))} files could not be read")


if __name__ == "__main__":
    inputs.define_flags()
    flags.DEFINE_string("out", None, "The .npz, or .parquet (needs the extra parquet), to write.")
    flags.register_validator("out", lambda out: (out or "").endswith((".npz", ".parquet")), "--out: .npz or .parquet")
    flags.DEFINE_bool("tokens", False, "The tokens of the last encoder instead of one vector.")
    command_line.run(main, required=["out"], verbosity=logging.WARNING, positional=True)
