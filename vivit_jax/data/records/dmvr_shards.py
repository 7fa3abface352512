"""Shards of DMVR and Scenic: which files make up which split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from vivit_jax.data.records.split import NoRecordsError
from vivit_jax.utils import storage

# `train-00000-of-00032`, `k400-train.tfrecord-00000-of-00100`, `val-00000-of-00010.tfrecord`; or one file per split.
_SHARD = re.compile(r"(?P<base>.+)-(?P<shard>\d{5,})-of-(?P<count>\d{5,})(?:\.\w+)?$")
_SINGLE = re.compile(r"(?P<base>.+)\.(?:tfrecords?|tfrec)$")
_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validate", "validation"), "validation")


def find_shards(folder: storage.PathLike, patterns: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Finds the shards of each split: {split: names in order, relative to `folder`}.

    A split is named after the word for one in the shards' names ("val" is "validation"); by their whole name if there
    is no such word, or if two sets of shards have the same.

    Args:
      folder: folder of the shards.
      patterns: split -> glob pattern of its shards; None for all files that look like shards.

    Raises:
      NoRecordsError: no shards, none for a pattern, or not all shards of a set.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        raise NoRecordsError(f"no folder {folder}")
    if patterns:
        splits = {
            split: sorted(str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file())
            for split, pattern in patterns.items()
        }
        for split, names in splits.items():
            if not names:
                raise NoRecordsError(f"{folder}: no file fits the pattern {patterns[split]!r} of split {split!r}")
            _complete_sets(folder, names)
        return splits
    sets = _complete_sets(folder, [name for name in storage.names(folder) if _SHARD.match(name) or _SINGLE.match(name)])
    if not sets:
        raise NoRecordsError(
            f"no records in {folder} (no files named *-00000-of-00001 or *.tfrecord); name them with --split=NAME=GLOB"
        )
    words = {
        base: next((_SPLITS[word] for word in re.split(r"[-_.]", base.lower()) if word in _SPLITS), None)
        for base in sets
    }
    counts = Counter(words.values())
    return {
        words[base] if words[base] and counts[words[base]] == 1 else re.sub(r"\W", "_", base): names
        for base, names in sets.items()
    }


def _complete_sets(folder: storage.AnyPath, names: Sequence[str]) -> dict[str, list[str]]:
    """Groups shards by their name without the number, and checks that none is missing."""
    sets: dict[str, list[str]] = {}
    for name in names:
        match = _SHARD.match(name) or _SINGLE.match(name)
        sets.setdefault(match["base"] if match else name, []).append(name)
    for base, members in sets.items():
        matches = [match for match in map(_SHARD.match, members) if match]
        counts = {int(match["count"]) for match in matches}
        if len(counts) > 1:
            raise NoRecordsError(f"{folder}: {base} has shards of {' and of '.join(map(str, sorted(counts)))} mixed")
        if matches and sorted(int(match["shard"]) for match in matches) != list(range(min(counts))):
            raise NoRecordsError(f"{folder}: {base} has {len(matches)} of {min(counts)} shards; copy the others too")
    return sets
