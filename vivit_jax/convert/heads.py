"""Which classifiers of the weights a model takes over, by the names of their classes (`InitFrom.head`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.models import ViViTConfig

ClassNames = Mapping[str, Sequence[str]]  # head, 'label' for an only head -> names by class id


@dataclasses.dataclass(frozen=True)
class Decision:
    """Outcome of one head of the model."""

    kept: bool  # the classifier of the weights is taken; otherwise it starts at zero
    why: str  # for the report
    order: np.ndarray | None = None  # int [C], class id in the weights of each class of the model; None: unchanged


def leaf_name(head: str | None) -> str:
    """Returns the name of a head's parameters; an only head has no name of its own."""
    return "head" if head is None else f"head_{head}"


def decide(
    choice: str,
    source: ViViTConfig,
    config: ViViTConfig,
    class_names: tuple[ClassNames, ClassNames],
    *,
    same_features: bool,
) -> tuple[dict[str, Decision], list[str]]:
    """Decides for each head of a model whether it is taken from the weights: ({leaf: decision}, problems).

    `choice` is `InitFrom.head`, `class_names` those of `source` and of `config`, as far as they are known;
    `same_features`: the heads of both follow the same layer (the pre-logits layer, or the one before it).
    """
    target_heads, source_heads = dict(config.heads), dict(source.heads)
    if choice == "keep" and target_heads != source_heads:
        wrong = f"the weights classify {source.num_classes}, the model {config.num_classes}"
        return {}, [f"head='keep': {wrong}; head='reinit' starts the classifier at zero"]
    decisions, problems = {}, []
    for head in target_heads:
        leaf = leaf_name(head)
        source_names, target_names = (names.get(head or "label") for names in class_names)
        order, why = match(source_names, target_names)
        if choice == "reinit":
            decisions[leaf] = Decision(False, "head = reinit: at zero")
        elif choice == "keep":
            if order is None and source_names and target_names:
                problems.append(f"head='keep', but {leaf} has {why}; head='reinit' starts it at zero")
            decisions[leaf] = Decision(True, why if order is not None else "", order)
        elif head not in source_heads:
            decisions[leaf] = Decision(False, "head = match: the weights have no such head; it starts at zero")
        elif order is None or not same_features:
            why = why if order is None else "it follows another layer in the weights"
            decisions[leaf] = Decision(False, f"head = match: {why}; it starts at zero")
        else:
            decisions[leaf] = Decision(True, why, order)
    return decisions, problems


def match(source: Sequence[str] | None, target: Sequence[str] | None) -> tuple[np.ndarray | None, str]:
    """Returns (int [C], class id in the weights of each class of the model, None where they differ; the reason)."""
    if not source:
        return None, "the weights do not name their classes"
    if not target:
        return None, "the names of the model's classes were not given"
    source, target = list(source), list(target)
    if source == target:
        return np.arange(len(target)), f"the same {len(target)} classes"
    ids = {name: i for i, name in enumerate(source)}
    if len(ids) == len(source) == len(target) and set(ids) == set(target):
        return np.array([ids[name] for name in target]), f"the same {len(target)} classes in another order, reordered"
    new = [name for name in target if name not in ids]
    example = f", {new[0]!r} is only in the model" if new else ""
    shared = len(set(ids) & set(target))
    return None, f"other classes: {len(source)} in the weights, {len(target)} in the model, {shared} in common{example}"
