"""A part of a split: by class, by list, by fraction, by number a class. Selection by arithmetic, no TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.data.records.split import RecordSplit
from vivit_jax.utils import storage

# What may become of the classes of a mixture that the model's heads do not have; see `mixture.training_set`.
UNKNOWN_CLASSES = ("error", "drop", "union")


class SubsetError(ValueError):
    """A subset that names what is not there, or that leaves nothing; the message says what there is."""


@dataclasses.dataclass(frozen=True)
class Subset:
    """Which videos of a split take part; the conditions hold together. The heads of the model stay as they are.

    Attributes:
      classes: names of classes, NAME or HEAD:NAME; a video takes part whose class (of several at once, any) is named,
        in each head that has names here. Also for evaluation. () for all.
      list_file: file with a video id a line, as in the records' index; empty lines and lines that begin with # are
        ignored. All segments of a video that is named take part.
      fraction: of what is left, in (0, 1], rounded to whole videos, at least one.
      per_class: videos of each class of the first head, at most; None for all. Not where that has several labels at
        once.
      seed: of fraction and per_class. Videos are ranked by a hash of (seed, id), so that a smaller fraction or number
        is contained in a larger one; the seed of training has no part in it.

    Raises:
      ValueError: a field outside its range.
    """

    classes: tuple[str, ...] = ()
    list_file: str | None = None
    fraction: float = 1.0
    per_class: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ValueError(f"subset.classes={self.classes!r} must be a list of names, ({self.classes!r},)")
        object.__setattr__(self, "classes", tuple(self.classes))
        if not 0 < self.fraction <= 1:
            raise ValueError(f"subset.fraction={self.fraction} must lie in (0, 1]")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"subset.per_class={self.per_class} must be at least 1, or None for all")

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.classes or self.list_file or self.per_class) or self.fraction < 1

    def for_evaluation(self) -> Subset:
        """What of it holds for evaluation: the classes."""
        return Subset(classes=self.classes)

    def __str__(self) -> str:
        parts = [f"classes {', '.join(self.classes)}"] if self.classes else []
        parts += [f"those in {self.list_file}"] if self.list_file else []
        parts += [f"a fraction of {self.fraction:g}"] if self.fraction < 1 else []
        parts += [f"at most {self.per_class} a class"] if self.per_class else []
        return "; ".join(parts) or "all"


def apply(splits: Mapping[str, RecordSplit], subset: Subset) -> dict[str, RecordSplit]:
    """The videos of each split that take part, as splits with the same heads and class names.

    Args:
      splits: by name of their data set, all with the same class names.
      subset: fraction and per_class hold for each split by itself, a list for all together.

    Raises:
      SubsetError: a class or an id that is in none of the splits, a list that cannot be read, or a split left empty.
    """
    if not subset:
        return dict(splits)
    listed = None if subset.list_file is None else _read_list(subset.list_file)
    if listed is not None:
        known = set().union(*(set(split.video_id.tolist()) for split in splits.values()))
        unknown = sorted(listed - known)
        if unknown:
            raise SubsetError(
                f"subset.list_file {subset.list_file}: {len(unknown)} of {len(listed)} ids are no videos of "
                f"{', '.join(splits)}, first {unknown[:3]}; ids look like {sorted(known)[:3]}"
            )
    return {name: _apply(name, split, subset, listed) for name, split in splits.items()}


def take(split: RecordSplit, places: np.ndarray) -> RecordSplit:
    """The videos at `places` (int [K], places in the split) as a split of their own, of the same records."""
    counts = split.num_chunks[places]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)[: len(places)]
    # The chunks of the videos taken, each video's one behind the other.
    chunks = np.repeat(split.first_chunk[places] - first, counts) + np.arange(counts.sum())
    changed = {"labels": {head: ids[places] for head, ids in split.labels.items()}}
    for field in dataclasses.fields(split):
        value = getattr(split, field.name)
        if isinstance(value, np.ndarray) and value.ndim:
            changed[field.name] = value[chunks] if field.name.startswith("chunk_") else value[places]
    return dataclasses.replace(split, **(changed | {"first_chunk": first}))


def _apply(name: str, split: RecordSplit, subset: Subset, listed: set[str] | None) -> RecordSplit:
    places, first = np.arange(split.num_videos), next(iter(split.labels))
    if subset.per_class is not None and first in split.multi_label:
        raise SubsetError(
            f"subset.per_class={subset.per_class}: a video of {name} has several labels of {first!r} at once, so that "
            "no number a class is exact; use subset.fraction or subset.list_file"
        )
    for head, ids in _class_ids(split, subset.classes).items():
        named = np.isin(split.labels[head][places], sorted(ids))
        places = places[named.any(axis=1) if head in split.multi_label else named]
    if listed is not None:
        places = places[np.isin(split.video_id[places], sorted(listed))]
    if subset.fraction < 1 or subset.per_class is not None:
        ranked = places[np.argsort(_ranks(split.video_id, subset.seed)[places], kind="stable")]
        ranked = ranked[: max(1, round(subset.fraction * len(ranked)))]
        if subset.per_class is not None:
            labels = split.labels[first][ranked]
            order = np.argsort(labels, kind="stable")
            grouped = labels[order]
            within = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)
            ranked = ranked[order[within < subset.per_class]]
        places = np.sort(ranked)
    if not len(places):
        raise SubsetError(f"subset ({subset}) leaves none of the {split.num_videos} videos of {name}, {split.name}")
    return take(split, places)


def _class_ids(split: RecordSplit, names: Sequence[str]) -> dict[str, set[int]]:
    """Head -> ids of the classes that are named, for each head that has some."""
    ids: dict[str, set[int]] = {}
    for name in names:
        pairs = [(head, i) for head, known in split.class_names.items() for i, other in enumerate(known)]
        found = [(h, i) for h, i in pairs if name in (split.class_names[h][i], f"{h}:{split.class_names[h][i]}")]
        if len(found) == 1:
            ids.setdefault(found[0][0], set()).add(found[0][1])
            continue
        if found:
            ways = " or ".join(f"{head}:{split.class_names[head][i]}" for head, i in found)
            raise SubsetError(f"subset.classes: {name!r} is a class of several heads; write {ways}")
        close = difflib.get_close_matches(name, [split.class_names[h][i] for h, i in pairs], n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "the records' class_names.json has them"
        raise SubsetError(f"subset.classes: {name!r} is not a class; {hint}")
    return ids


def _ranks(video_id: np.ndarray, seed: int) -> np.ndarray:
    """A hash of (seed, id, how often the id came before) for each video: uint64 [N]."""
    seen: dict[str, int] = {}
    ranks = np.empty(len(video_id), np.uint64)
    for place, name in enumerate(video_id.tolist()):
        seen[name] = seen.get(name, -1) + 1
        digest = hashlib.blake2b(f"{seed}\0{name}\0{seen[name]}".encode(), digest_size=8).digest()
        ranks[place] = int.from_bytes(digest, "big")
    return ranks


def _read_list(path: str) -> set[str]:
    try:
        lines = storage.path(path).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SubsetError(f"subset.list_file {path} cannot be read: {error}") from None
    ids = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    if not ids:
        raise SubsetError(f"subset.list_file {path} holds no ids; it is a text file with one a line")
    return ids
