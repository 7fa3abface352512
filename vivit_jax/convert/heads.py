"""Which classifiers of the weights a model takes: by the names of their classes (`InitFrom.head`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.models import ViViTConfig

Names = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of one head of the model.

    Attributes:
      kept: the weights' classifier is taken; else it starts at zero.
      why: in words.
      order: int [C], the weights' class id of each of the model's; None: as they are.
    """

    kept: bool
    why: str
    order: np.ndarray | None = None


def leaf_name(head: str | None) -> str:
    """Under which name the parameters of a head lie; an only head has no name of its own."""
    return "head" if head is None else f"head_{head}"


def decide(
    choice: str, source: ViViTConfig, config: ViViTConfig, class_names: tuple[Names, Names], *, same_features: bool
) -> tuple[dict[str, Decision], list[str]]:
    """What becomes of each head of a model.

    Args:
      choice: of `InitFrom.head`.
      source, config: the model of the weights, and the one to fill.
      class_names: {head: names by class id} of both, 'label' for an only head; as far as they are known.
      same_features: whether the heads of both look at the same layer (the pre-logits layer, or the one before it).

    Returns:
      ({leaf: decision}, what cannot be done).
    """
    ours, theirs = dict(config.heads), dict(source.heads)
    if choice == "keep" and ours != theirs:
        wrong = f"the weights classify {source.num_classes}, the model {config.num_classes}"
        return {}, [f"head='keep': {wrong}; head='reinit' starts the classifier at zero"]
    plan, problems = {}, []
    for head in ours:
        leaf, (known, wanted) = leaf_name(head), (names.get(head or "label") for names in class_names)
        order, why = match(known, wanted)
        if choice == "reinit":
            plan[leaf] = Decision(False, "head = new: at zero")
        elif choice == "keep":
            if order is None and known and wanted:
                problems.append(f"head='keep', but {leaf} has {why}; head='reinit' starts it at zero")
            plan[leaf] = Decision(True, why if order is not None else "", order)
        elif head not in theirs:
            plan[leaf] = Decision(False, "head = match: the weights have no such head; it starts at zero")
        elif order is None or not same_features:
            why = why if order is None else "another layer before it"
            plan[leaf] = Decision(False, f"head = match: {why}; it starts at zero")
        else:
            plan[leaf] = Decision(True, why, order)
    return plan, problems


def match(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> tuple[np.ndarray | None, str]:
    """Puts the classes of the weights into the order of the model's.

    Args:
      theirs: names by class id in the weights; None: not known.
      ours: those of the model.

    Returns:
      (int [C], their class id of each of ours; None where the classes are not the same, and why, in words).
    """
    if not theirs:
        return None, "the weights do not name their classes"
    if not ours:
        return None, "the names of the model's classes were not given"
    theirs, ours = list(theirs), list(ours)
    if theirs == ours:
        return np.arange(len(ours)), f"the same {len(ours)} classes"
    ids = {name: i for i, name in enumerate(theirs)}
    if len(ids) == len(theirs) == len(ours) and set(ids) == set(ours):
        return np.array([ids[name] for name in ours]), f"the same {len(ours)} classes in another order, put in ours"
    new = [name for name in ours if name not in ids]
    some = f", {new[0]!r} is not among theirs" if new else ""
    shared = len(set(ids) & set(ours))
    return None, f"other classes: {len(theirs)} in the weights, {len(ours)} in the model, {shared} in common{some}"
