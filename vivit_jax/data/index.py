"""Command `python -m vivit_jax.data.index DIR`: rebuilds the index of the records in a folder by reading them.

python -m vivit_jax.data.index DIR                  records of vivit_jax, or of DMVR or Scenic with one label
python -m vivit_jax.data.index DIR --out=DIR2       the index goes to DIR2
python -m vivit_jax.data.index DIR --head=noun=clip/label/index:0:300 --head=verb=clip/label/index:300:97
                                                    EPIC-Kitchens, with labels concatenated as Scenic does
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

from vivit_jax.data.annotations import parsing
from vivit_jax.data.records import dmvr, reader, scan
from vivit_jax.data.records.dmvr_labels import DEFAULT, Head
from vivit_jax.data.records.split import NoRecordsError
from vivit_jax.utils import storage, terminal


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    parser.error = lambda text: argparse.ArgumentParser.error(parser, text + terminal.dash_advice(argv or sys.argv[1:]))
    flags = parser.parse_args(argv)
    try:
        splits = dict(text.partition("=")[::2] for text in flags.split)
        for name, pattern in splits.items():
            if not name.replace("_", "").isalnum() or not pattern:
                raise ValueError(f"--split={name}={pattern}: it must be NAME=GLOB, as in --split=train=train-*-of-*")
        if not _holds_sequences(flags, splits):
            for split in scan.scan(flags.folder):
                print(f"{split.save()}: {split.num_videos} videos, {len(split.chunk_offset)} records")
            return
        heads = [_parse_head(text) for text in flags.head] or [DEFAULT]
        class_names = _read_class_names(flags.class_names, heads)
        for line in dmvr.index_folder(flags.folder, flags.out, splits, heads, class_names, flags.labels):
            print(line)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vivit_jax.data.index",
        description="Rebuilds the index of the records in a folder by reading them. All flags are for records of DMVR "
        "and Scenic; those of vivit_jax need none.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of the records")
    parser.add_argument("--out", help="folder for the index, if DIR is read-only; it then names the shards absolutely")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME=GLOB",
        help="shards of a split, if their names do not tell; repeat for several splits",
    )  # fmt: skip
    parser.add_argument(
        "--head", action="append", default=[], metavar="NAME=FEATURE[:FIRST:COUNT]",
        help="where the class of a head is: an integer or bytes feature of the context; with FIRST and COUNT, the one "
        "value among FIRST to FIRST + COUNT - 1, minus FIRST. Default: label=clip/label/index",
    )  # fmt: skip
    parser.add_argument(
        "--class_names", action="append", default=[], metavar="[HEAD=]FILE",
        help="class names in the order of the ids: .json, .csv with columns id and key, or text with a name per line",
    )  # fmt: skip
    parser.add_argument(
        "--labels", choices=("auto", "index", "text"), default="auto",
        help="what decides the class: the number in the record, or its text (ids are then those of the sorted names, "
        "or of --class_names). Default: the number where there is one",
    )  # fmt: skip
    return parser


def _holds_sequences(flags: argparse.Namespace, splits: Mapping[str, str] | None) -> bool:
    """Returns whether the records in `flags.folder` are sequences; else they are chunks."""
    example = dmvr.first_record(flags.folder, splits)
    if example is None:
        raise NoRecordsError(f"{flags.folder}: the shards hold no records that can be read")
    if reader.SEQUENCE_FRAMES in example.feature_lists.feature_list:
        return True
    features = example.context.feature
    if not {"frames", "chunk"} <= set(features):
        expected = f"tf.train.SequenceExamples with a feature list {reader.SEQUENCE_FRAMES!r}"
        held = ", ".join(sorted({*features, *example.feature_lists.feature_list})) or "no features"
        held += " as a feature of the context, not as a list" if reader.SEQUENCE_FRAMES in features else ""
        raise ValueError(f"{flags.folder}: neither chunks of vivit_jax nor {expected}; the records hold {held}")
    given = [name for name in ("out", "split", "head", "class_names") if getattr(flags, name)]
    if given:
        raise ValueError(f"{flags.folder} holds records of vivit_jax: --{given[0]} is only for those of DMVR")
    return False


def _parse_head(text: str) -> Head:
    match = re.fullmatch(r"([^\W\d]\w*)=([^:]+)(?::(\d+):0*([1-9]\d*))?", text)
    if match is None:
        form = "NAME=FEATURE or NAME=FEATURE:FIRST:COUNT, as in --head=verb=clip/label/index:300:97"
        raise ValueError(f"--head={text}: it must be {form}")
    name, feature, first, count = match.groups()
    return Head(name, feature, int(first), int(count)) if count else Head(name, feature)


def _read_class_names(flags: Sequence[str], heads: Sequence[Head]) -> dict[str, list[str]]:
    """Reads the files of `--class_names=[HEAD=]FILE` flags: {head: names in the order of the class ids}."""
    names, counts = {}, {head.name: head.count for head in heads}
    for flag in flags:
        head, _, file = flag.rpartition("=")
        head = head or (heads[0].name if len(heads) == 1 else "")
        path = storage.path(file)
        if head not in counts:
            raise ValueError(f"--class_names={flag}: give HEAD=FILE with a head of {', '.join(counts)}")
        if not path.is_file():
            raise ValueError(f"--class_names={flag}: no file {path}")
        if path.suffix == ".json":
            loaded = [entry for _, entry in parsing.json_entries(path, (dict, list))]
            names[head] = dict(loaded).get(head) if isinstance(loaded[0], tuple) else loaded
        elif path.suffix == ".csv":
            key_of = {row["id"]: row["key"] for _, row in parsing.table(path, ("id", "key"))}
            names[head] = [key_of.get(str(number)) for number in range(len(key_of))]
        else:
            names[head] = [line for _, line in parsing.lines(path)]
        if not names[head] or not all(isinstance(name, str) for name in names[head]):
            raise ValueError(f"--class_names={flag}: no list of names for head {head!r} in it, in the order of the ids")
        if counts[head] is not None and len(names[head]) != counts[head]:
            given = f"{len(names[head])} names, but --head gives {head!r} {counts[head]} classes"
            raise ValueError(f"--class_names={flag}: {given}")
    return names


if __name__ == "__main__":
    main()
