"""`python -m vivit_jax.predict`: prints the labels of video files; see the package."""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from absl import flags, logging
from etils import epath

from vivit_jax.config import flags as command_line
from vivit_jax.data.video import encode
from vivit_jax.models.relevance import METHODS
from vivit_jax.predict import Prediction, Predictor, inputs, timeline, write_explanation
from vivit_jax.utils import plots, storage


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    with command_line.exit_on(ValueError):
        if options.timeline is not None and (options.explain or options.pictures):
            raise ValueError("--explain and --pictures are of whole videos, --timeline is of windows: run them apart")
        if options.timeline is None and (options["hop"].present or options["stride"].present):
            raise ValueError("--hop and --stride are about the windows of --timeline; add it, or leave them out")
    predictor, files = inputs.start(argv[1:])
    with command_line.exit_on(ValueError):
        if options.explain and not is_folder(options.explain) and len(files) > 1:
            raise ValueError(f"--explain={options.explain} is one file, for {len(files)} videos; name a folder")
    if options.timeline is None:
        show = csv_printer() if options.csv and not options.json else print
        results = predictor.predict(files, options.top)
    else:
        results = timelines(predictor, files)
    failed, taken = 0, set()
    for file, result in results:
        if isinstance(result, Exception):
            failed += 1
            name = "" if file in str(result) else f"{file}: "
            print(f"error: {name}{result}", file=sys.stderr, flush=True)
            if options.json:
                print(json.dumps({"file": file, "error": str(result)}), flush=True)
            continue
        if result is None:  # printed and written already
            continue
        show(json.dumps({"file": result.path, "labels": result.ranked}) if options.json else result)
        sys.stdout.flush()
        if options.pictures:
            with plots.optional(file):
                draw(result, epath.Path(options.pictures))
        if options.explain:
            with plots.optional(file):
                write_explanation(result, explanation_path(file, options.explain, taken), options.explain_method)
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def csv_printer() -> Callable[[Prediction], None]:
    """Prints a header; returns what prints a line for each label."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "head", "rank", "label", "probability"))
    return lambda prediction: writer.writerows(
        (prediction.path, head, rank, label, f"{probability:.6g}")
        for head, ranked in prediction.ranked.items()
        for rank, (label, probability) in enumerate(ranked, start=1)
    )


def timelines(predictor: Predictor, files: Iterable[str]) -> Iterator[tuple[str, Exception | None]]:
    """Prints the segments of each file as they come, and writes its timeline; yields (file, what went wrong)."""
    options, rows = flags.FLAGS, csv.writer(sys.stdout, lineterminator="\n")
    if options.csv and not options.json:
        rows.writerow(("file", "start", "end", "label", "probability"))
    for file in files:
        found, problems = [], []
        try:
            sound = _until_broken(timeline.windows(predictor, file, options.hop, options.stride, options.top), problems)
            for each in timeline.segments(sound):
                found.append(each)
                if options.csv and not options.json:
                    rows.writerow((file, f"{each.start:.3f}", f"{each.end:.3f}", each.label, f"{each.probability:.6g}"))
                elif not options.json:
                    print(*[file] * (len(found) == 1), f"  {each}", sep="\n", flush=True)
            record = timeline.write(file, found, options.timeline) if found else None
            if record and options.json:
                print(json.dumps(record), flush=True)
        except Exception as error:  # the other files have theirs
            problems.append(error)
        yield file, problems[0] if problems else None


def _until_broken(windows: Iterator[timeline.Segment], problems: list[Exception]) -> Iterator[timeline.Segment]:
    """Yields the windows before the first that cannot be read, and adds the reason to `problems`."""
    try:
        yield from windows
    except Exception as error:
        problems.append(error)


def is_folder(explain: str) -> bool:
    """Returns whether --explain names a folder; raises ValueError for a file that is no video."""
    suffix = storage.path(explain).suffix.lower()
    if suffix and suffix not in encode.ANIMATIONS and not os.path.isdir(explain):
        raise ValueError(f"--explain={explain} must end in {', '.join(encode.ANIMATIONS)}, or be a folder")
    return suffix not in encode.ANIMATIONS


def explanation_path(file: str, explain: str, taken: set[str]) -> storage.AnyPath:
    """Returns --explain, or in a folder `explanation_NAME.mp4`, with a hash of the path where that is among `taken`."""
    if not is_folder(explain):
        return storage.path(explain)
    digest = hashlib.sha256(os.fsencode(storage.absolute(file))).hexdigest()[:8]
    stem = f"explanation_{storage.path(file).stem}"
    name = plots.file_name(stem, ".mp4")
    name = plots.file_name(f"{stem}_{digest}", ".mp4") if name in taken else name
    taken.add(name)
    return storage.path(explain) / name


def draw(prediction: Prediction, folder: epath.Path) -> epath.Path:
    """Writes `prediction_NAME.png`."""
    path, source = plots.picture_of(prediction.path, folder, "prediction")
    title = os.path.basename(prediction.path)
    figure = plots.prediction(prediction.clips[0], prediction.relevance[0], prediction.ranked, title)
    return plots.save(figure, path, source)


def run() -> None:
    """Defines the flags and runs the program."""
    inputs.define_flags()
    flags.DEFINE_integer("top", 5, "Number of labels to print.", lower_bound=1)
    flags.DEFINE_string("pictures", None, "Folder for a PNG of each file: frames, relevance, labels.")
    folder = "Folder for a PNG, JSON and SRT (subtitles) of the labels over each file's time. Default: the current one."
    parser = flags.ArgumentParser()  # of a flag that may have a value
    parser.parse = lambda value: {"true": ".", "false": None}.get(value, value)
    flags.DEFINE_flag(flags.Flag(parser, None, "timeline", None, folder, boolean=True))
    flags.DEFINE_string("hop", "1", "Between the windows of a timeline, in windows (0.5) or seconds (2s).")
    flags.DEFINE_integer("stride", None, "Between the frames of a window. Default: the model's.", lower_bound=1)
    flags.DEFINE_string("explain", None, "Video of what labels rest on: .mp4, .gif, .webp; or a folder for several.")
    flags.DEFINE_enum("explain_method", "gradient", METHODS, "Gradient-weighted relevance, or attention rollout.")
    flags.DEFINE_bool("json", False, "Print one JSON object per line.")
    flags.DEFINE_bool("csv", False, "Print a line for each label, as CSV.")
    command_line.run(main, verbosity=logging.WARNING, positional=True)


if __name__ == "__main__":
    run()
