"""Finds the videos that are most similar to one, by the cosine of their features.

python -m vivit_jax.search --workdir=RUN --like=clip.mp4 folder   # or features.npz, which vivit_jax.features wrote
"""

import io
import json

import numpy as np
from absl import flags, logging

from vivit_jax.config import flags as command_line
from vivit_jax.features import extract
from vivit_jax.predict import inputs
from vivit_jax.utils import storage


def nearest(values: np.ndarray, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of `values` [N, d] most similar to each of `queries` [M, d], and the cosines: [M, K <= top]."""
    values, queries = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (values, queries))
    cosines = queries @ values.T
    order = np.argsort(-cosines, axis=-1, kind="stable")[:, :top]
    return order, np.take_along_axis(cosines, order, axis=-1)


def main(argv: list[str]) -> None:
    options, stored = flags.FLAGS, {}
    if path := next((name for name in argv[1:] if name.endswith((".npz", ".parquet"))), None):
        with command_line.exit_on(OSError, ValueError):
            if path.endswith(".parquet"):
                raise ValueError(f"{path}: only features in .npz are searched; write them with vivit_jax.features")
            if len(argv) > 2:
                raise ValueError(f"{path} holds the videos to search: it must be the only argument")
            try:
                arrays = dict(np.load(io.BytesIO(storage.path(path).read_bytes())))
            except storage.NPZ_ERRORS as error:
                raise ValueError(f"{path} cannot be read ({error}); vivit_jax.features writes it") from error
            if "features" not in arrays:
                raise ValueError(f"{path} has no features, only {', '.join(arrays)}: write it without --tokens")
            stored = dict(zip(arrays["path"].tolist(), arrays["features"], strict=True))
            checkpoint = str(arrays["checkpoint"])
            options.checkpoint = options.checkpoint or (None if options.workdir else checkpoint)
    predictor, files = inputs.start(argv[1:], classifier=False)
    with command_line.exit_on(OSError, ValueError):
        if stored and predictor.path != checkpoint:
            raise ValueError(f"{path} holds features of {checkpoint}, those of the query would be of {predictor.path}")
        (query,) = extract(predictor, [options.like]).values()
        found = stored or extract(predictor, files)
        others = [path for path in found if storage.absolute(path) != storage.absolute(options.like)]
        if not others:
            raise ValueError(f"there is no other video than --like={options.like} to compare with")
        rows, cosines = nearest(np.stack([found[path] for path in others]), query[None], options.top)
    for row, cosine in zip(rows[0], cosines[0].tolist(), strict=True):
        line = json.dumps({"file": others[row], "similarity": cosine})
        print(line if options.json else f"{cosine:7.4f}  {others[row]}")


if __name__ == "__main__":
    inputs.define_flags()
    flags.DEFINE_string("like", None, "The video to compare with.")
    flags.DEFINE_integer("top", 10, "Number of videos to print.", lower_bound=1)
    flags.DEFINE_bool("json", False, "Print one JSON object per line.")
    command_line.run(main, required=["like"], verbosity=logging.WARNING, positional=True)
