"""`python -m vivit_jax.predict`: prints the labels of video files; see the package."""

import contextlib
import csv
import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from absl import app, flags, logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax.config import flags as command_line
from vivit_jax.config.sections import EVALUATION_DTYPES
from vivit_jax.data.annotations.video_files import list_videos
from vivit_jax.predict import Prediction, Predictor
from vivit_jax.utils import logs, plots, storage, terminal

_SOURCE = "Source"  # text field of a picture: the file that it shows


def main(argv: list[str]) -> None:
    files, options = list(videos(argv[1:])), flags.FLAGS
    if not files:
        raise app.UsageError("name at least one video file, folder or pattern")
    logs.configure_logging()
    with command_line.exit_on(checkpointing.CheckpointError, ValueError, OSError):
        if (options.workdir is None) == (options.checkpoint is None):
            raise ValueError("give --workdir, a run, or --checkpoint, a checkpoint or pretrained weights")
        names = ("temporal_views", "spatial_views", "weights", "dtype")
        predictor = Predictor(options.workdir or options.checkpoint, **{name: options[name].value for name in names})
    show = csv_printer() if options.csv and not options.json else print
    failed = 0
    for file, result in predictor.predict(files, options.top):
        if isinstance(result, Exception):
            failed += 1
            name = "" if file in str(result) else f"{file}: "
            print(f"error: {name}{result}", file=sys.stderr, flush=True)
            if options.json:
                print(json.dumps({"file": file, "error": str(result)}), flush=True)
            continue
        show(json.dumps({"file": result.path, "labels": result.ranked}) if options.json else result)
        sys.stdout.flush()
        if options.pictures:
            with plots.optional(file):
                draw(result, epath.Path(options.pictures))
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def videos(arguments: Iterable[str]) -> Iterator[str]:
    """Yields the videos of each argument: a file, a folder, or a pattern (`**` for any folders below).

    A folder stands for all videos below it, which may be folders of numbered pictures; one with such pictures is a
    video itself. What does not exist is yielded as it is, and is an error when it is read.
    """
    for argument in arguments:
        found = [argument]
        if not storage.is_remote(argument) and not os.path.lexists(argument):
            found = sorted(glob.glob(argument, recursive=True)) or [argument]
        for path in found:
            below: list[str] = []
            with contextlib.suppress(Exception):  # what cannot be listed is an error when it is read
                below = list_videos(path).videos
            yield from below or [path]


def csv_printer() -> Callable[[Prediction], None]:
    """Prints a header; returns what prints a line for each label."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "head", "rank", "label", "probability"))

    def write(prediction: Prediction) -> None:
        for head, ranked in prediction.ranked.items():
            for rank, (label, probability) in enumerate(ranked, start=1):
                writer.writerow((prediction.path, head, rank, label, f"{probability:.6g}"))

    return write


def draw(prediction: Prediction, folder: epath.Path) -> epath.Path:
    """Writes `prediction_NAME.png`, with a hash of the file's path where that is the picture of another file."""
    source = terminal.printable(str(storage.absolute(prediction.path)))
    stem = f"prediction_{storage.path(prediction.path).stem}"
    path = folder / plots.file_name(stem, ".png")
    if path.exists() and plots.text_of(path, _SOURCE) != source:
        path = folder / plots.file_name(f"{stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}", ".png")
    title = os.path.basename(prediction.path)
    figure = plots.prediction(prediction.views[0], prediction.attention, prediction.ranked, title)
    return plots.save(figure, path, {_SOURCE: source})


def run() -> None:
    """Defines the flags (not on import, since other programs have flags of the same names) and runs the program."""
    flags.DEFINE_string("workdir", None, "A run, whose best checkpoint is used, or the folder of one step.")
    flags.DEFINE_string("checkpoint", None, "In its place, weights in any format that vivit_jax.convert reads.")
    flags.DEFINE_integer("top", 5, "Number of labels to print.", lower_bound=1)
    flags.DEFINE_integer("temporal_views", None, "Clips over the video's length. Default: the config's.", lower_bound=1)
    flags.DEFINE_integer("spatial_views", None, "Crops of each clip, 1 to 3. Default: the config's.")
    flags.DEFINE_enum("weights", "params", ["params", "ema"], "The parameters, or their EMA.")
    flags.DEFINE_enum("dtype", None, EVALUATION_DTYPES, "Of the compute. Default: the config's evaluation.dtype, auto.")
    flags.DEFINE_string("pictures", None, "Folder for a PNG of each file: frames, attention, labels.")
    flags.DEFINE_bool("json", False, "Print one JSON object per line.")
    flags.DEFINE_bool("csv", False, "Print a line for each label, as CSV.")
    command_line.run(main, verbosity=logging.WARNING, positional=True)


if __name__ == "__main__":
    run()
