"""Part of a split: selected by class, by list, by fraction, by number per class."""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.data.records.split import RecordSplit
from vivit_jax.utils import storage
from vivit_jax.utils.checks import at_least, within

# What to do with classes of a mixture that the model's heads do not have; see `training_set`.
UNKNOWN_CLASSES = ("error", "drop", "union")


class SubsetError(ValueError):
    """A subset that names what does not exist, or that leaves nothing; the message says what exists."""


@dataclasses.dataclass(frozen=True)
class Subset:
    """Which videos of a split are used; all conditions must hold. The heads of the model do not change.

    Attributes:
      classes: NAME or HEAD:NAME; in each head named here, a video must have one of the classes. Also for evaluation.
      list_file: file with one video id per line, for all segments of the video; # begins a comment line.
      seed: seed of fraction and per_class, independent of that of training. Videos are ranked by a hash of (seed, id),
        so a smaller fraction or number is contained in a larger one.
    """

    classes: tuple[str, ...] = ()
    list_file: str | None = None
    fraction: float = 1.0  # fraction of the remaining videos, in (0, 1], rounded to whole videos, at least one
    per_class: int | None = None  # most videos of each class of the first head, which must not be multi-label
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ValueError(f"subset.classes={self.classes!r} must be a list of names, ({self.classes!r},)")
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))  # flags parse 0,1
        within("subset", self, "(0, 1]", "fraction")
        at_least("subset", self, per_class=1)

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.classes or self.list_file or self.per_class) or self.fraction < 1

    def __str__(self) -> str:
        parts = [f"classes {', '.join(self.classes)}"] if self.classes else []
        parts += [f"those in {self.list_file}"] if self.list_file else []
        parts += [f"a fraction of {self.fraction:g}"] if self.fraction < 1 else []
        parts += [f"at most {self.per_class} per class"] if self.per_class else []
        return "; ".join(parts) or "all"


def apply(splits: Mapping[str, RecordSplit], subset: Subset) -> dict[str, RecordSplit]:
    """Selects the videos of each data set's split; all have the same class names.

    Fraction and per_class apply to each split by itself, a list to all together. Raises SubsetError for a class or an
    id that is in none of the splits, and for a split left empty.
    """
    if not subset:
        return dict(splits)
    listed = None if subset.list_file is None else _read_list(subset.list_file)
    if listed is not None:
        known = set().union(*(split.video_id.tolist() for split in splits.values()))
        if unknown := sorted(listed - known):
            problem = f"{len(unknown)} of {len(listed)} ids are no videos of {', '.join(splits)}, first {unknown[:3]}"
            raise SubsetError(f"subset.list_file {subset.list_file}: {problem}; ids look like {sorted(known)[:3]}")
    return {name: take(split, _select(name, split, subset, listed)) for name, split in splits.items()}


def take(split: RecordSplit, indices: np.ndarray) -> RecordSplit:
    """Returns the videos `indices` (int [K]) of a split as a split of the same records."""
    counts = split.num_chunks[indices]
    first = np.cumsum(counts) - counts
    chunks = np.repeat(split.first_chunk[indices] - first, counts) + np.arange(counts.sum())
    changed = {"labels": {head: ids[indices] for head, ids in split.labels.items()}}
    for field in dataclasses.fields(split):
        value = getattr(split, field.name)
        if isinstance(value, np.ndarray) and value.ndim:
            changed[field.name] = value[chunks] if field.name.startswith("chunk_") else value[indices]
    return dataclasses.replace(split, **(changed | {"first_chunk": first}))


def _select(name: str, split: RecordSplit, subset: Subset, listed: set[str] | None) -> np.ndarray:
    """Returns the indices of the selected videos, rising."""
    selected, first_head = np.arange(split.num_videos), next(iter(split.labels), None)
    if subset.per_class is not None and (first_head is None or first_head in split.multi_label):
        reason = f"head {first_head!r} of {name} is multi-label, so no number per class is exact"
        reason = f"the videos of {name} have no labels" if first_head is None else reason
        raise SubsetError(f"subset.per_class={subset.per_class}: {reason}; use subset.fraction or subset.list_file")

    # Conditions on single videos.
    for head, ids in _class_ids(split, subset.classes).items():
        has_class = np.isin(split.labels[head][selected], sorted(ids))
        selected = selected[has_class.any(axis=1) if head in split.multi_label else has_class]
    if listed is not None:
        selected = selected[np.isin(split.video_id[selected], sorted(listed))]

    # The first of each class, and of all, by rank.
    if subset.fraction < 1 or subset.per_class is not None:
        ranked = selected[np.argsort(_ranks(split.video_id, subset.seed)[selected], kind="stable")]
        ranked = ranked[: max(1, round(subset.fraction * len(ranked)))]
        if subset.per_class is not None:
            labels = split.labels[first_head][ranked]
            of_classes = [ranked[labels == label][: subset.per_class] for label in np.unique(labels)]
            ranked = np.concatenate([ranked[:0], *of_classes])
        selected = np.sort(ranked)
    if not len(selected):
        raise SubsetError(f"subset ({subset}) leaves none of the {split.num_videos} videos of {name}, {split.name}")
    return selected


def _class_ids(split: RecordSplit, names: Sequence[str]) -> dict[str, set[int]]:
    """Returns {head: ids of the classes in `names`}, for each head that has some."""
    ids: dict[str, set[int]] = {}
    all_classes = [(head, i, name) for head, known in split.class_names.items() for i, name in enumerate(known)]
    for name in names:
        matches = [(head, i, known) for head, i, known in all_classes if name in (known, f"{head}:{known}")]
        if len({head for head, *_ in matches}) == 1:  # of which several classes may have this name
            ids.setdefault(matches[0][0], set()).update(number for _, number, _ in matches)
            continue
        if matches:
            choices = " or ".join(f"{head}:{known}" for head, _, known in matches)
            raise SubsetError(f"subset.classes: {name!r} is a class of several heads; write {choices}")
        close = difflib.get_close_matches(name, [known for *_, known in all_classes], n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "the records' class_names.json has them"
        raise SubsetError(f"subset.classes: {name!r} is not a class; {hint}")
    return ids


def _ranks(video_id: np.ndarray, seed: int) -> np.ndarray:
    """Returns a hash of (seed, id, number of earlier videos with this id) of each video: uint64 [N]."""
    seen: dict[str, int] = {}
    ranks = np.empty(len(video_id), np.uint64)
    for index, name in enumerate(video_id.tolist()):
        seen[name] = seen.get(name, -1) + 1
        digest = hashlib.blake2b(f"{seed}\0{name}\0{seen[name]}".encode(), digest_size=8).digest()
        ranks[index] = int.from_bytes(digest, "big")
    return ranks


def _read_list(path: str) -> set[str]:
    try:
        lines = storage.path(path).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SubsetError(f"subset.list_file {path} cannot be read: {error}") from None
    ids = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    if not ids:
        raise SubsetError(f"subset.list_file {path} holds no ids; it is a text file with one id per line")
    return ids
