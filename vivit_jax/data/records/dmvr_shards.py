"""Shards of DMVR and Scenic: which files make up which split."""

import re
from collections import Counter
from collections.abc import Mapping

from vivit_jax.data.records.split import NoRecordsError, group_shards
from vivit_jax.utils import storage

# `train-00000-of-00032`, `k400-train.tfrecord-00000-of-00100`, `val-00000-of-00010.tfrecord`; or one file per split.
_SHARD = re.compile(r"(?P<base>.+?)(?:-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?:\.\w+)?|\.(?:tfrecords?|tfrec))")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validate", "validation"),
}


def find_shards(folder: storage.PathLike, patterns: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Finds the shards of each split: {split: names in order, relative to `folder`}.

    `patterns` gives the glob pattern of each split. Without it, a split is named after the word for one in the shards'
    names ("val" is "validation"), or has their whole name if there is no such word, or if two sets of shards have it.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        raise NoRecordsError(f"no folder {folder}")
    if patterns:
        splits = {}
        for split, pattern in patterns.items():
            splits[split] = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file())
            if not splits[split]:
                raise NoRecordsError(f"{folder}: no file fits the pattern {pattern!r} of split {split!r}")
            group_shards(folder, splits[split], _SHARD)
        return splits
    sets = group_shards(folder, storage.names(folder), _SHARD)
    if not sets:
        raise NoRecordsError(
            f"no records in {folder} (no files named *-00000-of-00001 or *.tfrecord); name them with --split=NAME=GLOB"
        )
    split_of = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
    named = {base: next(filter(None, map(split_of.get, re.split(r"[-_.]", base.lower()))), None) for base in sets}
    counts = Counter(named.values())
    return {
        named[base] if named[base] and counts[named[base]] == 1 else re.sub(r"\W", "_", base): names
        for base, names in sets.items()
    }
