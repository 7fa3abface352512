"""Builds the records of a data set.

python -m vivit_jax.data.build --dataset=NAME --videos=DIR --annotations=DIR --out=DIR
python -m vivit_jax.data.build --dataset=folder|csv --name=MY_NAME --videos=DIR [--annotations=DIR] --out=DIR
python -m vivit_jax.data.build ... --part=K/N     on machine K of N; then once without --part
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence

from vivit_jax.data import catalog
from vivit_jax.data.build import BuildOptions, build
from vivit_jax.data.paths import REJECTS_FILE, VERSION, read_summary
from vivit_jax.utils import storage

# Share of rejected videos from which a build counts as failed.
MOST_REJECTED = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    flags = _parser().parse_args(argv)
    custom = flags.dataset in catalog.CUSTOM_KINDS
    kind = flags.dataset if custom else None
    names = {field.name for field in dataclasses.fields(BuildOptions)} & vars(flags).keys()
    try:
        options = BuildOptions(kind=kind, **{name: getattr(flags, name) for name in names})
        if custom != bool(flags.name):
            use = f"--dataset={'|'.join(catalog.CUSTOM_KINDS)} needs --name=NAME, by which training finds the records"
            raise ValueError(f"{use}; other data sets have none: --dataset={flags.dataset}, --name={flags.name}")
        folder = build(flags.name or flags.dataset, flags.videos, flags.annotations, flags.out, options)
    except Exception as error:
        # TensorFlow and the workers have other errors for a full disk.
        if isinstance(error, OSError | ValueError) or storage.is_full(error):
            raise SystemExit(f"error: {error}") from None
        raise
    if options.part is not None and folder.name != VERSION:
        print(f"part {options.part[0]} of {options.part[1]} is in {folder}; after the last part, build without --part")
        return
    summary = read_summary(folder)
    for split, counts in summary["splits"].items():
        print(f"{split}: {counts['videos']} videos, {counts['frames']} frames, {counts['bytes'] / 1e6:.1f} MB")
    rows, rejects = sum(counts["rows"] for counts in summary["splits"].values()), summary["rejects"]
    rejected = f", {rejects} of {rows} videos ({rejects / rows:.1%}) rejected (see {REJECTS_FILE})" if rejects else ""
    print(f"records in {folder}{rejected}")
    if rejects and rejects >= MOST_REJECTED * rows and not flags.allow_rejects:
        reason, count = next(iter(summary["reject_reasons"].items()))
        message = f"{rejects} of {rows} videos ({rejects / rows:.1%}) are rejected, {count} of them: {reason}"
        sys.exit(f"error: {message}. The records hold the others; --allow_rejects accepts that")


def _list(text: str) -> list[str]:
    return text.split(",")


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text}: it must be K/N, with K from 1 to N, as 2/8")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    custom = " or ".join(catalog.CUSTOM_KINDS)
    parser.add_argument("--dataset", required=True, help=f"{', '.join(catalog.DATASETS)}; custom: {custom}")
    parser.add_argument("--name", help="of a custom data set: lower-case letters, digits and underscores")
    parser.add_argument("--videos", required=True, help="folder of the video files")
    parser.add_argument("--annotations", help="folder of the annotation files; custom data sets: default --videos")
    parser.add_argument("--out", required=True, help="folder for the records, which go to OUT/NAME/1.0.0")
    parser.add_argument("--label_separator", help="; or |, which separates the labels in multi-label fields of a CSV")
    parser.add_argument("--columns", type=_list, help="of a CSV in order, where unclear: path,label; - for one unused")
    parser.add_argument("--splits", type=_list, help="splits to build, separated by commas; default: all")
    parser.add_argument(
        "--fps", type=float, help="maximum frames per second; default: the source's; the rate of folders of frames"
    )
    parser.add_argument("--short_side", type=int, help="maximum, in pixels; default: that of the data set")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEGs, 1 to 95")
    parser.add_argument("--max_seconds", type=float, default=21600, help="of a file; a longer one is rejected")
    parser.add_argument("--max_gb", type=float, default=32, help="of the JPEGs of a file, in 2^30 bytes, likewise")
    parser.add_argument("--allow_rejects", action="store_true", help="exit with 0 even if half the videos are rejected")
    parser.add_argument("--workers", dest="num_workers", type=int, help="decoding processes; default: one per core")
    parser.add_argument("--part", type=_part, help="K/N: write the shards of machine K of N, from 1, and no index")
    return parser


if __name__ == "__main__":
    main()
