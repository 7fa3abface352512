"""Makes the records of a data set.

    python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR

`prepare` is what training calls: it returns at once where the records are there, and else makes them if it can.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vivit_jax.data import annotations, catalog, moving_digits

VERSION = "1.0.0"


def records_folder(name: str, data_dir: str | Path) -> Path:
    """Where the records of data set `name` lie under `data_dir`: `data_dir/NAME/1.0.0`."""
    return Path(data_dir) / name / VERSION


def build(
    name: str,
    videos: str | Path,
    annotation_folder: str | Path,
    out: str | Path,
    quality: int = 85,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes the records of data set `name` in `out/NAME/1.0.0` and returns that folder; done builds are not redone.

    Args:
      name: in the catalog.
      videos, annotation_folder: where the official files are.
      out: folder for the records.
      quality: of the JPEGs, 1 to 95.
      num_workers: decoding processes; None for one a core, 0 for this process.
      progress: show a progress bar.

    Raises:
      ValueError: unknown data set, bad quality, records of another quality there already.
      annotations.MissingDataError, annotations.AnnotationError: see `annotations`.

    Files that cannot be used are no error here: they are listed with the reason in `rejects.csv`.
    """
    facts = catalog.get(name)
    folder = records_folder(name, out)
    if (folder / "summary.json").is_file():
        stored = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["quality"]
        if stored != quality:
            raise ValueError(
                f"{folder} holds records of JPEG quality {stored}, asked for is {quality}: "
                "give another --out, or delete that folder"
            )
        return folder
    from vivit_jax.data import builder  # only here: TensorFlow takes seconds to load

    records = builder.VideoRecords(facts, videos, annotation_folder, out, quality, num_workers, progress)
    return records.build()


def prepare(
    name: str, data_dir: str | Path, num_workers: int | None = None, progress: bool = True, **generator: int
) -> Path:
    """The folder with the records of data set `name`; made where they are absent and can be made.

    moving_digits is generated and built. The others are built where their files are found in `data_dir/NAME/videos` and
    `data_dir/NAME/annotations`.

    Args:
      name: in the catalog.
      data_dir: folder of all data sets.
      num_workers, progress: as in `build`.
      **generator: `train`, `validation`, `seed` of `moving_digits.generate`.

    Raises:
      annotations.MissingDataError: neither records nor the files to make them; says what belongs where.
      ValueError: unknown data set; moving_digits there with other sizes or seed.
    """
    facts = catalog.get(name)
    folder = records_folder(name, data_dir)
    source = Path(data_dir) / name
    if name == "moving_digits":
        if not (folder / "summary.json").is_file() or (generator and (source / moving_digits.MANIFEST).is_file()):
            moving_digits.generate(source, num_workers=num_workers, progress=progress, **generator)
    elif generator:
        raise ValueError(f"{', '.join(generator)}: only moving_digits is generated, {name} is not")
    if (folder / "summary.json").is_file():
        return folder
    videos, annotation_folder = source / "videos", source / "annotations"
    if not (videos.is_dir() and annotation_folder.is_dir()):
        message = annotations.missing_message(facts, videos, annotation_folder)
        raise annotations.MissingDataError(f"no records in {folder}, and nothing to make them from.\n{message}")
    return build(name, videos, annotation_folder, data_dir, num_workers=num_workers, progress=progress)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help=", ".join(catalog.DATASETS))
    parser.add_argument("--videos", required=True, help="folder of the video files")
    parser.add_argument("--annotations", required=True, help="folder of the official annotation files")
    parser.add_argument("--out", required=True, help="folder for the records; they go to OUT/NAME/1.0.0")
    parser.add_argument("--workers", type=int, default=None, help="decoding processes; one a core when left out")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs, 1 to 95")
    flags = parser.parse_args(argv)
    try:
        folder = build(flags.dataset, flags.videos, flags.annotations, flags.out, flags.quality, flags.workers)
    except (annotations.MissingDataError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for split, facts in summary["splits"].items():
        print(f"{split}: {facts['videos']} videos, {facts['frames']} frames, {facts['bytes'] / 1e6:.1f} MB")
    rejected = f", {summary['rejects']} rejected (see rejects.csv)" if summary["rejects"] else ""
    print(f"records in {folder}{rejected}")


if __name__ == "__main__":
    main()
