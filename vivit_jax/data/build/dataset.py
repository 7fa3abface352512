"""Makes the records of a data set.

    python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR
    python -m vivit_jax.data.build --dataset=folder|csv --name=MY_NAME --videos=DIR [--annotations=DIR] --out=DIR
    python -m vivit_jax.data.build ... --runner=direct|DataflowRunner|... [-- flags of Beam's runner]

`prepare` is what training calls: it returns at once where the records are there, and else makes them if it can.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from vivit_jax.data import annotations, catalog, moving_digits, storage

VERSION = "1.0.0"
# What was found and made; written last, so that records with it are whole.
SUMMARY_FILE = "summary.json"


def records_folder(name: str, data_dir: storage.Place) -> storage.AnyPath:
    """Where the records of data set `name` lie under `data_dir`: `data_dir/NAME/1.0.0`."""
    return storage.path(data_dir) / name / VERSION


def build(
    name: str,
    videos: storage.Place,
    annotation_folder: storage.Place | None,
    out: storage.Place,
    quality: int = 85,
    num_workers: int | None = None,
    progress: bool = True,
    *,
    kind: str | None = None,
    fps: float | None = None,
    short_side: int | None = None,
    splits: Sequence[str] | None = None,
    runner: str = "local",
    runner_flags: Sequence[str] = (),
    label_separator: str | None = None,
) -> storage.AnyPath:
    """Makes the records of data set `name` in `out/NAME/1.0.0` and returns that folder; done builds are not redone.

    Args:
      name: in the catalog, or with `kind` any other.
      videos, annotation_folder: where the files are; the annotations of one's own data lie with the videos where None.
      out: folder for the records. Each of the three may lie in a bucket (gs://).
      quality: of the JPEGs, 1 to 95.
      num_workers: decoding processes; None for one a core, 0 for this process.
      progress: show a progress bar.
      kind: "folder" or "csv" for one's own data, see `catalog.own`.
      fps: frames per second to keep at most; None for all of the source's. The frame kept for each point in time is the
        last at or before it, and none is kept twice.
      short_side: pixels that the shorter side has at most; None for the data set's own.
      splits: those to build; None for all.
      runner: "local" for processes of this machine, "direct" for Beam on this machine, or one of Beam's runners.
      runner_flags: of Beam.
      label_separator: ";" or "|" where a CSV gives several labels of a video in one field, see `readers.own`.

    Raises:
      ValueError: unknown data set or split, a value outside its limits, records of another form there already.
      annotations.MissingDataError, annotations.AnnotationError: see `annotations`.
      ImportError: a runner of Beam's without Apache Beam.

    Files that cannot be used are no error here: they are listed with the reason in `rejects.csv`.
    """
    facts = catalog.own(name, kind, label_separator=label_separator) if kind else catalog.get(name)
    if label_separator is not None and not kind:
        raise ValueError(f"--label_separator={label_separator} is for a CSV of one's own, not for {name}")
    if annotation_folder is None and not kind:
        raise ValueError(f"{name} has annotation files of its own: --annotations=DIR says where they are")
    if runner == "local" and runner_flags:
        raise ValueError(f"{' '.join(runner_flags)}: flags after -- are of a runner of Beam's; --runner says which")
    if short_side is not None:
        facts = dataclasses.replace(facts, short_side=short_side)
    from vivit_jax.data import encode

    form = encode.Form(facts.short_side, quality, fps)
    # Workers elsewhere have another working directory.
    videos, out = storage.absolute(videos), storage.absolute(out)
    folder = records_folder(name, out)
    if (folder / SUMMARY_FILE).is_file():
        _check_same(folder, form, splits, label_separator)
        return folder
    from vivit_jax.data import builder  # only here: TensorFlow takes seconds to load

    records = builder.VideoRecords(
        facts,
        videos,
        annotation_folder or videos,
        out,
        form,
        splits,
        num_workers,
        progress,
        runner,
        runner_flags,
    )
    return records.build()


def _check_same(folder: storage.AnyPath, form, splits: Sequence[str] | None, label_separator: str | None) -> None:
    """Raises ValueError where the finished records in `folder` are not what is asked for."""
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    wrong = [
        f"of {words} {stored}, asked for is {asked}"
        for words, stored, asked in (
            ("JPEG quality", summary["quality"], form.quality),
            ("short side", summary["short_side"], form.short_side),
            ("frame rate", summary.get("fps") or "the source's", form.fps or "the source's"),
            ("labels of a head", _several(summary.get("multi_label")), _several(label_separator)),
        )
        if stored != asked
    ]
    absent = [split for split in splits or () if split not in summary["splits"]]
    if absent:
        wrong.append(f"of split {', '.join(summary['splits'])}, asked for is {', '.join(absent)} too")
    if wrong:
        raise ValueError(f"{folder} holds records {'; '.join(wrong)}: give another --out, or delete that folder")


def _several(given) -> str:
    return "several at once" if given else "one"


def prepare(
    name: str, data_dir: storage.Place, num_workers: int | None = None, progress: bool = True, **generator: int
) -> storage.AnyPath:
    """The folder with the records of data set `name`; made where they are absent and can be made.

    moving_digits is generated and built. The others of the catalog are built where their files are found in
    `data_dir/NAME/videos` and `data_dir/NAME/annotations`. One's own must have been built.

    Args:
      name: in the catalog, or of records that are there.
      data_dir: folder of all data sets; may lie in a bucket (gs://).
      num_workers, progress: as in `build`.
      **generator: `train`, `validation`, `seed` of `moving_digits.generate`.

    Raises:
      annotations.MissingDataError: neither records nor the files to make them; says what belongs where.
      ValueError: not in the catalog and no records there; moving_digits there with other sizes or seed.
    """
    folder = records_folder(name, data_dir)
    facts = catalog.of_records(name, folder)
    source = storage.path(data_dir) / name
    if name == "moving_digits":
        if not (folder / SUMMARY_FILE).is_file() or (generator and (source / moving_digits.MANIFEST).is_file()):
            moving_digits.generate(source, num_workers=num_workers, progress=progress, **generator)
    elif generator:
        raise ValueError(f"{', '.join(generator)}: only moving_digits is generated, {name} is not")
    if (folder / SUMMARY_FILE).is_file():
        return folder
    videos, annotation_folder = source / "videos", source / "annotations"
    if not (videos.is_dir() and annotation_folder.is_dir()):
        message = annotations.missing_message(facts, videos, annotation_folder)
        raise annotations.MissingDataError(f"no records in {folder}, and nothing to make them from.\n{message}")
    return build(name, videos, annotation_folder, data_dir, num_workers=num_workers, progress=progress)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What stands behind "--" is Beam's: its flags are not ours to know.
    ours, theirs = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        ours, theirs = arguments[:place], arguments[place + 1 :]
    flags = _parser().parse_args(ours)
    own = flags.dataset in catalog.OWN
    try:
        if own != bool(flags.name):
            raise ValueError(
                f"--dataset={flags.dataset} needs --name=NAME, by which training finds its records"
                if own
                else f"--name={flags.name} is for one's own data (--dataset={'|'.join(catalog.OWN)}); "
                f"{flags.dataset} has its name"
            )
        folder = build(
            flags.name if own else flags.dataset,
            flags.videos,
            flags.annotations,
            flags.out,
            flags.quality,
            flags.workers,
            kind=flags.dataset if own else None,
            fps=flags.fps,
            short_side=flags.short_side,
            splits=flags.splits.split(",") if flags.splits else None,
            runner=flags.runner,
            runner_flags=theirs,
            label_separator=flags.label_separator,
        )
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise SystemExit(f"error: {error}") from None
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    for split, facts in summary["splits"].items():
        print(f"{split}: {facts['videos']} videos, {facts['frames']} frames, {facts['bytes'] / 1e6:.1f} MB")
    rejected = f", {summary['rejects']} rejected (see rejects.csv)" if summary["rejects"] else ""
    print(f"records in {folder}{rejected}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = "; of your own: " + " or ".join(catalog.OWN)
    parser.add_argument("--dataset", required=True, help=", ".join(catalog.DATASETS) + kinds)
    parser.add_argument("--name", help="of your own data set: lower-case letters, digits and underscores")
    parser.add_argument("--videos", required=True, help="folder of the video files")
    parser.add_argument("--annotations", help="folder of the annotation files; the videos' for your own data")
    parser.add_argument("--out", required=True, help="folder for the records; they go to OUT/NAME/1.0.0")
    parser.add_argument(
        "--label_separator",
        metavar="|".join(map(repr, catalog.LABEL_SEPARATORS)),
        help="of a CSV: between several labels of a video in one field; that head then has several labels at once",
    )
    parser.add_argument("--splits", help="those to build, with commas: train,validation; all when left out")
    parser.add_argument("--fps", type=float, help="frames a second to keep at most; the source's when left out")
    parser.add_argument("--short_side", type=int, help="pixels at most; the data set's own when left out")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs, 1 to 95")
    parser.add_argument("--workers", type=int, default=None, help="decoding processes; one a core when left out")
    parser.add_argument(
        "--runner",
        default="local",
        help="local (this machine), direct (Beam on this machine), or a runner of Beam's; its flags follow after --",
    )
    return parser


if __name__ == "__main__":
    main()
