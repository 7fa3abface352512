"""What is trained on: one data set or a weighted mixture of several, whole or in part, with one set of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.data import catalog
from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection import mirror
from vivit_jax.data.selection import subset as subsets
from vivit_jax.data.selection.order import Order, block_slots
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.selection.subset import UNKNOWN_CLASSES, Subset


class MixtureError(ValueError):
    """Data sets that cannot be mixed; the message names the classes or heads in the way, and what can be done."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The videos that are trained on: splits one behind the other, so that each video has one number.

    Attributes:
      names: of the data sets.
      splits: one of each, with the same class names.
      weights: each data set gets this share of the clips, in proportion.
      dropped: name -> videos left out because the heads have no such class.
      subset: what was selected of each split.
      mirrored: head -> class -> class of its mirror image, where the data set states it; see `mirror`.
    """

    names: tuple[str, ...]
    splits: tuple[RecordSplit, ...]
    weights: tuple[float, ...] = (1.0,)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    subset: Subset = dataclasses.field(default_factory=Subset)
    mirrored: Mapping[str, Mapping[str, str | None]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, split: RecordSplit | TrainingSet) -> TrainingSet:
        """A split by itself; a TrainingSet as it is."""
        return split if isinstance(split, cls) else cls((split.name,), (split,))

    @property
    def num_videos(self) -> int:
        return sum(split.num_videos for split in self.splits)

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self.splits[0].class_names

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of classes."""
        return self.splits[0].heads

    @property
    def multi_label(self) -> frozenset[str]:
        """Heads with several labels at once."""
        return self.splits[0].multi_label

    def mirror_classes(self) -> dict[str, np.ndarray]:
        """Head -> class of the mirror image of each class: int32 [classes], -1 where there is none."""
        return {head: mirror.classes(names, self.mirrored.get(head)) for head, names in self.class_names.items()}

    def order(self, seed: int, spec: ClipSpec) -> Order:
        """The order in which the videos come."""
        sizes = tuple(split.num_videos for split in self.splits)
        return Order(sizes, seed, block_slots(self.weights), spec.clips_per_video)

    def fingerprint(self, seed: int, spec: ClipSpec) -> str:
        """16 hex digits for a checkpoint: another order, or other videos in it, give others."""
        chosen = [name for split in self.splits for name in split.video_id.tolist()] if self._is_selection else ()
        return self.order(seed, spec).fingerprint(chosen)

    @property
    def _is_selection(self) -> bool:
        return len(self.splits) > 1 or bool(self.subset)

    def locate(self, number: int) -> str:
        """The name of a video by its number (`index` in the batches), with its data set where there are several."""
        for name, split in zip(self.names, self.splits, strict=True):
            if number < split.num_videos:
                return f"{name}/{split.video_id[number]}" if len(self.splits) > 1 else str(split.video_id[number])
            number -= split.num_videos
        raise IndexError(f"no video {number} in a training set of {self.num_videos}")

    def __str__(self) -> str:
        slots = block_slots(self.weights)
        lines = []
        for name, split, share in zip(self.names, self.splits, slots, strict=True):
            text = f"{name} {split.name}: {split.num_videos} videos"
            if len(slots) > 1:
                text += f", {share} of {sum(slots)} clips"
            if self.dropped.get(name):
                text += f", {self.dropped[name]} more left out: no such class in the heads"
            lines.append(text)
        return "; ".join(lines) + (f" (selected: {self.subset})" if self.subset else "")


def training_set(
    splits: Mapping[str, RecordSplit],
    main: str,
    weights: Mapping[str, float] | None = None,
    unknown_classes: str = "error",
    subset: Subset | None = None,
    main_split: RecordSplit | None = None,
) -> TrainingSet:
    """Makes the training set from opened splits.

    Classes are the same where their names are, but for case, and `_` or `-` for a space.

    Args:
      splits: the training split of each data set that takes part.
      main: the data set whose heads and class ids the model has, the one evaluated.
      weights: of the data sets in `splits`; None for one data set.
      unknown_classes: what becomes of a class that `main` does not have. 'error': an error with the list; 'drop': the
        videos that have it (be it among others) are left out, and counted; 'union': the heads get it, behind the
        classes of `main`, by name.
      subset: what is selected of each split.
      main_split: any split of `main`, for its classes, where `main` itself is not in `splits`.

    Raises:
      MixtureError: other heads, heads with one label here and several at once there, or classes that `main` does not
        have.
      SubsetError: see `subset.apply`.
      ValueError: weights that are not greater than 0.
    """
    names = sorted(splits)  # not the order of a mapping that went through JSON and the command line
    weighted = tuple(float((weights or {}).get(name, 1.0)) for name in names)
    block_slots(weighted)
    reference = splits.get(main, main_split)
    if reference is None:
        raise MixtureError(f"{main} is not among {', '.join(names)}, so its classes are unknown")
    if unknown_classes not in UNKNOWN_CLASSES:
        raise ValueError(f"unknown_classes is {unknown_classes!r}; choose one of {', '.join(UNKNOWN_CLASSES)}")
    for name in names:
        if set(splits[name].class_names) != set(reference.class_names):
            raise MixtureError(
                f"{name} has the heads {', '.join(splits[name].class_names)}, {main} has "
                f"{', '.join(reference.class_names)}: only data sets with the same heads can be mixed"
            )
        if splits[name].num_videos and splits[name].multi_label != reference.multi_label:
            several = ", ".join(sorted(splits[name].multi_label ^ reference.multi_label))
            raise MixtureError(
                f"head {several}: in one of {name} and {main} a video has several labels at once, in the other one, "
                "which says nothing of the other classes; build both in the same form"
            )
    class_names = {head: list(known) for head, known in reference.class_names.items()}
    missing = {name: _missing(splits[name], class_names) for name in names}
    if unknown_classes == "union":
        for head, known in class_names.items():
            added: dict[str, str] = {}
            for name in names:
                added |= {_key(label): label for label in missing[name].get(head, ()) if _key(label) not in added}
            known.extend(sorted(added.values()))
    elif unknown_classes == "error" and any(any(heads.values()) for heads in missing.values()):
        lines = [
            f"{name} has {len(labels)} classes that head {head!r} of {main} does not: {', '.join(labels)}"
            for name, heads in missing.items()
            for head, labels in heads.items()
            if labels
        ]
        raise MixtureError("\n".join([*lines, "drop their videos (unknown_classes='drop') or add them ('union')"]))
    relabelled, dropped = {}, {}
    for name in names:
        relabelled[name] = relabel(splits[name], class_names)
        dropped[name] = splits[name].num_videos - relabelled[name].num_videos
        if not relabelled[name].num_videos:
            raise MixtureError(f"{name} has no video of a class that {main} has")
    chosen = subsets.apply(relabelled, subset or Subset())
    mirrored = {}
    for name in sorted(names, key=lambda name: name == main):  # what `main` states goes before the others
        for head, pairs in (catalog.DATASETS[name].mirrored if name in catalog.DATASETS else {}).items():
            mirrored[head] = mirrored.get(head, {}) | dict(pairs)
    return TrainingSet(tuple(names), tuple(chosen[n] for n in names), weighted, dropped, subset or Subset(), mirrored)


def evaluation_split(
    split: RecordSplit, class_names: Mapping[str, Sequence[str]], subset: Subset | None = None
) -> RecordSplit:
    """What of a split is evaluated: with the classes of a model, the classes of a subset.

    Args:
      split: to be evaluated.
      class_names: of the model's heads; may be more than the split's, of a mixture.
      subset: only its classes count.

    Raises:
      MixtureError: the split has videos of classes that the model does not have.
      SubsetError: no video of the subset's classes.
    """
    found = relabel(split, class_names)
    if found.num_videos != split.num_videos:
        raise MixtureError(
            f"{split.num_videos - found.num_videos} of {split.num_videos} videos of {split.folder}, {split.name}, are "
            "of classes that the model does not have: evaluate it on the data set that it was trained for"
        )
    return subsets.apply({split.name: found}, (subset or Subset()).for_evaluation())[split.name]


def relabel(split: RecordSplit, class_names: Mapping[str, Sequence[str]]) -> RecordSplit:
    """The split with its labels as ids of `class_names`; videos of a class that is not among them are left out."""
    if {head: list(names) for head, names in split.class_names.items()} == dict(class_names):
        return split
    labels, known = {}, np.ones(split.num_videos, bool)
    for head, names in class_names.items():
        ids = {_key(name): i for i, name in reversed(list(enumerate(names)))}
        exact = {name: i for i, name in enumerate(names)}
        table = [exact.get(name, ids.get(_key(name), -1)) for name in split.class_names[head]]
        # Behind the classes, where the -1 of a head with several labels at once points: what fills the rows up.
        labels[head] = np.asarray([*table, -1], np.int32)[split.labels[head]]
        unknown = (labels[head] < 0) & (split.labels[head] >= 0)
        known &= ~(unknown.any(axis=1) if head in split.multi_label else unknown)
        if head in split.multi_label:  # ids rise, and the filling is behind them
            labels[head] = np.sort(labels[head].astype(np.uint32), axis=1).astype(np.int32)
    changed = dataclasses.replace(split, labels=labels, class_names={h: list(n) for h, n in class_names.items()})
    return changed if known.all() else subsets.take(changed, np.flatnonzero(known))


def _missing(split: RecordSplit, class_names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Head -> names of the split's classes, of which it has videos, that `class_names` does not have."""
    result = {}
    for head, names in split.class_names.items():
        known = {_key(name) for name in class_names[head]}
        used = np.unique(split.labels[head])
        result[head] = [names[i] for i in used if i >= 0 and _key(names[i]) not in known]
    return result


def _key(name: str) -> str:
    """What two spellings of a class name have in common."""
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
