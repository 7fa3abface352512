"""Indexes the records in a folder by reading them: `python -m vivit_jax.data.index DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vivit_jax.data.records import dmvr, reader, scan
from vivit_jax.data.records.dmvr_shards import find_shards
from vivit_jax.data.records.split import NoRecordsError
from vivit_jax.utils import storage


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    flags = parser().parse_args(arguments)
    try:
        if is_sequence(flags):
            for line in dmvr.index_folder(flags):
                print(line)
            return
        for split in scan.scan(flags.folder):
            print(f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records")
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def parser() -> argparse.ArgumentParser:
    """Flags of `python -m vivit_jax.data.index`."""
    flags = argparse.ArgumentParser(
        prog="python -m vivit_jax.data.index",
        description="Makes the index of the records in a folder anew, by reading them. The flags are for records of "
        "DMVR and Scenic; those that vivit_jax wrote tell all by themselves.",
    )
    flags.add_argument("folder", metavar="DIR", help="the folder of the records")
    flags.add_argument("--out", help="folder for the index where DIR cannot be written to; names the shards absolutely")
    flags.add_argument(
        "--split", action="append", default=[], metavar="NAME=GLOB",
        help="shards of a split, where their names do not tell; several times for several splits",
    )  # fmt: skip
    flags.add_argument(
        "--head", action="append", default=[], metavar="NAME=FEATURE[:FIRST:COUNT]",
        help="where the class of a head is: an integer or bytes feature of the context; with FIRST and COUNT the one "
        "value among FIRST to FIRST + COUNT - 1, less FIRST. Default: label=clip/label/index",
    )  # fmt: skip
    flags.add_argument(
        "--class_names", action="append", default=[], metavar="[HEAD=]FILE",
        help="names in the order of the class ids: .json, .csv with columns id and key, or text with a name a line",
    )  # fmt: skip
    flags.add_argument(
        "--labels", choices=("auto", "index", "text"), default="auto",
        help="what decides the class: the number in the record, or its text (ids are then those of the sorted names, "
        "or of --class_names). Default: the number where there is one",
    )  # fmt: skip
    return flags


def is_sequence(flags: argparse.Namespace) -> bool:
    """Whether the records in `flags.folder` are sequences; False where they are chunks.

    Raises:
      NoRecordsError: no shards there.
      ValueError: records that are neither, or flags for sequences where there are chunks.
    """
    shards = find_shards(flags.folder, dmvr.parse_splits(flags))
    example = dmvr.first_record([storage.path(flags.folder) / name for names in shards.values() for name in names])
    if example is None:
        raise NoRecordsError(f"{flags.folder}: the shards hold no records that can be read")
    if reader.SEQUENCE_FRAMES in example.feature_lists.feature_list:
        return True
    if {"frames", "chunk"} <= set(example.context.feature):
        given = [name for name in ("out", "split", "head", "class_names") if getattr(flags, name)]
        if given:
            raise ValueError(f"{flags.folder} holds records of vivit_jax: --{given[0]} is only for those of DMVR")
        return False
    raise ValueError(
        f"{flags.folder}: the records are neither chunks of vivit_jax nor tf.train.SequenceExamples with a feature "
        f"list {reader.SEQUENCE_FRAMES!r}; they hold {', '.join(sorted(example.context.feature)) or 'no features'}"
    )


if __name__ == "__main__":
    main()
