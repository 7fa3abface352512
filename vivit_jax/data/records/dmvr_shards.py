"""Names of shards as others write them -> which files make up which split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vivit_jax.data.records.split import NoRecordsError
from vivit_jax.utils import storage

# `train-00000-of-00032`, `k400-train.tfrecord-00000-of-00100`, `val-00000-of-00010.tfrecord`; or one file a split.
_SHARD = re.compile(r"(?P<base>.+)-(?P<shard>\d{5,})-of-(?P<count>\d{5,})(?P<suffix>\.\w+)?$")
_SINGLE = re.compile(r"(?P<base>.+)\.(tfrecords?|tfrec)$")
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def find_shards(folder: storage.PathLike, patterns: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Split -> names of its shards in order, relative to `folder`.

    A split is called after the word for one in the shards' name ("val" is "validation"); where two sets of shards have
    the same word, or one has none, by their whole name.

    Args:
      folder: of the shards.
      patterns: split -> pattern of its shards' names (as of `Path.glob`); None for all that look like shards.

    Raises:
      NoRecordsError: none there, none for a pattern, or not all shards of a set.
    """
    folder = storage.path(folder)
    if not folder.is_dir():
        raise NoRecordsError(f"no folder {folder}")
    if patterns:
        found = {split: sorted(_matching(folder, pattern)) for split, pattern in patterns.items()}
        for split, names in found.items():
            if not names:
                raise NoRecordsError(f"{folder}: no file fits the pattern {patterns[split]!r} of split {split!r}")
            for base, members in _grouped(names).items():
                _check_complete(folder, base, members)
        return found
    groups = _grouped(sorted(name for name in storage.names(folder) if _SHARD.match(name) or _SINGLE.match(name)))
    if not groups:
        raise NoRecordsError(
            f"no records in {folder} (no files named *-00000-of-00001 or *.tfrecord); name them with --split=NAME=GLOB"
        )
    for base, members in groups.items():
        _check_complete(folder, base, members)
    words = {base: [_SPLITS[word] for word in re.split(r"[-_.]", base.lower()) if word in _SPLITS] for base in groups}
    splits = [found[0] for found in words.values() if found]
    return {
        words[base][0] if words[base] and splits.count(words[base][0]) == 1 else re.sub(r"\W", "_", base): members
        for base, members in groups.items()
    }


def _matching(folder: storage.AnyPath, pattern: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file()]


def _grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Shards that belong together, by their name without the number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        match = _SHARD.match(name) or _SINGLE.match(name)
        groups.setdefault(match["base"] if match else name, []).append(name)
    return groups


def _check_complete(folder: storage.AnyPath, base: str, names: Sequence[str]) -> None:
    matches = [match for match in map(_SHARD.match, names) if match]
    counts = {int(match["count"]) for match in matches}
    if len(counts) > 1:
        raise NoRecordsError(f"{folder}: {base} has shards of {' and of '.join(map(str, sorted(counts)))} mixed")
    if matches and sorted(int(match["shard"]) for match in matches) != list(range(min(counts))):
        raise NoRecordsError(f"{folder}: {base} has {len(matches)} of {min(counts)} shards; copy the others too")
