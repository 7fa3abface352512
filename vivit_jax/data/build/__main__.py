"""Builds the records of a data set.

python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR
python -m vivit_jax.data.build --dataset=folder|csv --name=MY_NAME --videos=DIR [--annotations=DIR] --out=DIR
python -m vivit_jax.data.build ... --runner=direct|DataflowRunner|... [-- flags of Beam's runner]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from vivit_jax.data import catalog
from vivit_jax.data.build.dataset import build
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What stands behind "--" is Beam's: its flags are not ours to know.
    ours, theirs = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        ours, theirs = arguments[:place], arguments[place + 1 :]
    flags = _parser().parse_args(ours)
    own = flags.dataset in catalog.CUSTOM_KINDS
    try:
        if own != bool(flags.name):
            raise ValueError(
                f"--dataset={flags.dataset} needs --name=NAME, by which training finds its records"
                if own
                else f"--name={flags.name} is for one's own data (--dataset={'|'.join(catalog.CUSTOM_KINDS)}); "
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
    for split, counts in summary["splits"].items():
        print(f"{split}: {counts['videos']} videos, {counts['frames']} frames, {counts['bytes'] / 1e6:.1f} MB")
    rejected = f", {summary['rejects']} rejected (see {REJECTS_FILE})" if summary["rejects"] else ""
    print(f"records in {folder}{rejected}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = "; of your own: " + " or ".join(catalog.CUSTOM_KINDS)
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
