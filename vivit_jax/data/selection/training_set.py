"""The training set: one data set or a weighted mixture of several, whole or in part, with one set of classes."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from vivit_jax.data.records.split import RecordSplit
from vivit_jax.data.selection import subset as subsets
from vivit_jax.data.selection.order import Order, block_slots
from vivit_jax.data.selection.sampling import ClipSpec
from vivit_jax.data.selection.subset import Subset
from vivit_jax.utils.class_names import ClassNamesError, class_ids, key, match


class MixtureError(ValueError):
    """Data sets that cannot be mixed; the message names the classes or heads, and the way out."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Concatenated splits, in which each video has one number.

    Attributes:
      dropped: data set -> number of videos left out because the heads do not have their class.
    """

    names: tuple[str, ...]  # names of the data sets
    splits: tuple[RecordSplit, ...]  # their splits after `subset`, with the same class names
    weights: tuple[float, ...] = (1.0,)  # share of the clips of each data set, as a ratio
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    subset: Subset = dataclasses.field(default_factory=Subset)

    @classmethod
    def from_split(cls, split: "RecordSplit | TrainingSet") -> "TrainingSet":
        """Returns the training set of a single split; a TrainingSet as it is."""
        return split if isinstance(split, cls) else cls((split.name,), (split,))

    @property
    def num_videos(self) -> int:
        return sum(split.num_videos for split in self.splits)

    @property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self.splits[0].class_names

    @property
    def heads(self) -> dict[str, int]:
        return self.splits[0].heads

    @property
    def multi_label(self) -> frozenset[str]:
        return self.splits[0].multi_label

    def order(self, seed: int, spec: ClipSpec) -> Order:
        """Returns the order of the videos."""
        sizes = tuple(split.num_videos for split in self.splits)
        return Order(sizes, seed, block_slots(self.weights), spec.clips_per_video)

    def fingerprint(self, seed: int, spec: ClipSpec) -> str:
        """Returns 16 hex digits for a checkpoint, which identify the order and the videos in it."""
        selected = len(self.splits) > 1 or bool(self.subset)
        videos = [name for split in self.splits for name in split.video_id.tolist()] if selected else ()
        return self.order(seed, spec).fingerprint(videos)

    def digests(self) -> dict[str, list[str]]:
        """Returns `RecordSplit.digests` of each data set, in the order of `names`, for a checkpoint."""
        digests = [split.digests() for split in self.splits]
        return {name: [each[name] for each in digests] for name in digests[0]}

    def relabelled(self, class_names: Mapping[str, Sequence[str]]) -> "TrainingSet":
        """Returns the training set with labels as ids of `class_names`."""
        return dataclasses.replace(self, splits=tuple(relabel(split, class_names) for split in self.splits))

    def locate(self, number: int) -> str:
        """Returns the name of a video by its number (`index` in the batches), in a mixture with its data set."""
        for name, split in zip(self.names, self.splits, strict=True):
            if number < split.num_videos:
                return f"{name}/{split.video_id[number]}" if len(self.splits) > 1 else str(split.video_id[number])
            number -= split.num_videos
        raise IndexError(f"no video {number} in a training set of {self.num_videos}")

    def __str__(self) -> str:
        slots = block_slots(self.weights)
        parts = []
        for name, split, share in zip(self.names, self.splits, slots, strict=True):
            text = f"{name} {split.name}: {split.num_videos} videos"
            if len(slots) > 1:
                text += f", {share} of {sum(slots)} clips"
            if self.dropped.get(name):
                text += f", {self.dropped[name]} more left out: no such class in the heads"
            parts.append(text)
        return "; ".join(parts) + (f" (selected: {self.subset})" if self.subset else "")


def training_set(
    splits: Mapping[str, RecordSplit],
    main: str,
    weights: Mapping[str, float] | None = None,
    unknown_classes: str = "error",
    subset: Subset | None = None,
    main_split: RecordSplit | None = None,
) -> TrainingSet:
    """Makes the training set from opened splits.

    Classes are matched by name, ignoring case and the difference between `_`, `-` and a space.

    Args:
      splits: data set -> training split.
      main: data set whose heads and class ids the model has; the one that is evaluated.
      weights: data set -> weight, 1 if missing.
      unknown_classes: what to do with a class that `main` does not have: 'error'; 'drop' its videos, and count them;
        'union': add it to the heads, after the classes of `main`, sorted by name.
      subset: selection to apply to each split.
      main_split: any split of `main`, for its classes, if `main` is not in `splits`.
    """
    # Not in the order of a mapping that went through JSON and the command line.
    splits, subset = dict(sorted(splits.items())), subset or Subset()
    ordered_weights = tuple(float((weights or {}).get(name, 1.0)) for name in splits)
    block_slots(ordered_weights)
    reference = splits.get(main, main_split)
    if reference is None:
        raise MixtureError(f"{main} is not among {', '.join(splits)}, so its classes are unknown")
    for name, split in splits.items():
        _check_heads(name, split, main, reference)

    # Classes of the heads, and videos of classes that they do not have.
    class_names = _merged_class_names(splits, main, reference, unknown_classes)
    relabelled = {name: relabel(split, class_names) for name, split in splits.items()}
    dropped = {name: splits[name].num_videos - split.num_videos for name, split in relabelled.items()}
    for name, split in relabelled.items():
        if not split.num_videos:
            raise MixtureError(f"{name} has no video of a class that {main} has")
    selected = subsets.apply(relabelled, subset)
    return TrainingSet(tuple(splits), tuple(selected.values()), ordered_weights, dropped, subset)


def _check_heads(name: str, split: RecordSplit, main: str, reference: RecordSplit) -> None:
    if set(split.class_names) != set(reference.class_names):
        theirs, ours = (", ".join(of_split.class_names) for of_split in (split, reference))
        raise MixtureError(f"{name} has the heads {theirs}, {main} has {ours}: only the same heads can be mixed")
    if split.num_videos and split.multi_label != reference.multi_label:
        heads = ", ".join(sorted(split.multi_label ^ reference.multi_label))
        problem = "one has several labels per video, the other one, which says nothing about the other classes"
        raise MixtureError(f"head {heads} is multi-label in one of {name} and {main}: {problem}; build both alike")


def _merged_class_names(
    splits: Mapping[str, RecordSplit], main: str, reference: RecordSplit, unknown_classes: str
) -> dict[str, list[str]]:
    """Returns {head: class names} of the model; handles classes that `main` does not have."""
    merged, problems = {}, []
    for head, names in reference.class_names.items():
        added: dict[str, str] = {}
        for name, split in splits.items():
            used = [split.class_names[head][i] for i in np.unique(split.labels[head]) if i >= 0]
            missing = [label for label, i in zip(used, class_ids(used, names), strict=True) if i < 0]
            added = {key(label): label for label in missing} | added
            if missing:
                has = f"{name} has {len(missing)} classes that head {head!r} of {main} does not"
                problems.append(f"{has}: {', '.join(missing)}")
        merged[head] = [*names, *(sorted(added.values()) if unknown_classes == "union" else ())]
    if problems and unknown_classes == "error":
        raise MixtureError("\n".join([*problems, "drop their videos (unknown_classes='drop') or add them ('union')"]))
    return merged


def evaluation_split(
    split: RecordSplit, class_names: Mapping[str, Sequence[str]], subset: Subset | None = None
) -> tuple[RecordSplit, dict[str, np.ndarray]]:
    """Returns a split as a model is evaluated on it, and {head: class id in the model of each class, int [C]}.

    The split has all classes of the model: its own first, in its order, then those that only the model has. Of a subset
    only the classes count. Raises ClassNamesError where the model lacks the class of a video.
    """
    where = f"{split.folder}, {split.name}"
    if not class_names:  # a model without heads
        return relabel(split, {}), {}
    if set(split.class_names) != set(class_names):
        heads = f"the heads {', '.join(split.class_names)}, the model {', '.join(class_names)}"
        raise ClassNamesError(f"{where} has {heads}: evaluate a model on the data set that it was trained for")
    ids, names, how = {}, {}, {}
    for head, own in split.class_names.items():
        found = match(class_names[head], own)
        if list(class_names[head]) != list(own):
            log = logging.warning if found.warning else logging.info
            log("Classes of %s, head %r: %s.", where, head, found.warning or found.how)
        others = np.setdiff1d(np.arange(len(class_names[head])), found.ids)
        ids[head], how[head] = np.append(found.ids, others), found.how
        names[head] = [*own, *(class_names[head][i] for i in others)]
    # With the names of both, since a subset may name a class that only the model has.
    split = dataclasses.replace(split, class_names=names)
    split = subsets.apply({split.name: split}, Subset(classes=subset.classes if subset else ()))[split.name]
    lacking = [head for head, labels in split.labels.items() if (ids[head][labels[labels >= 0]] < 0).any()]
    if lacking:
        lines = [f"head {head!r} has {how[head]}" for head in lacking]
        way_out = "evaluate the model on data with its classes, or on those in common (config.data.subset.classes)"
        raise ClassNamesError("\n".join([f"{where}: its classes are not those of the model", *lines, way_out]))
    shared = {head: [name for name, i in zip(names[head], ids[head], strict=True) if i >= 0] for head in ids}
    return relabel(split, shared), {head: of_head[of_head >= 0] for head, of_head in ids.items()}


def relabel(split: RecordSplit, class_names: Mapping[str, Sequence[str]]) -> RecordSplit:
    """Returns a split with labels as ids of `class_names`, without the videos of other classes."""
    if {head: list(names) for head, names in split.class_names.items()} == dict(class_names):
        return split
    labels, known = {}, np.ones(split.num_videos, bool)
    for head, names in class_names.items():
        new_ids = class_ids(split.class_names[head], names)
        # One entry more, for the padding (-1) of multi-label rows.
        labels[head] = np.asarray([*new_ids, -1], np.int32)[split.labels[head]]
        unknown = (labels[head] < 0) & (split.labels[head] >= 0)
        known &= ~(unknown.any(axis=1) if head in split.multi_label else unknown)
        if head in split.multi_label:  # rising ids, then padding
            labels[head] = np.sort(labels[head].astype(np.uint32), axis=1).astype(np.int32)
    changed = dataclasses.replace(split, labels=labels, class_names={h: list(n) for h, n in class_names.items()})
    return changed if known.all() else subsets.take(changed, np.flatnonzero(known))
