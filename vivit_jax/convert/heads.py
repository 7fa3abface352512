"""Which classifiers of the weights a model takes over, by the names of their classes (`InitFrom.head`)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.models import ViViTConfig
from vivit_jax.utils.class_names import listed, match, placeholders

ClassNames = Mapping[str, Sequence[str]]  # head, 'label' for an only head -> names by class id


@dataclasses.dataclass(frozen=True)
class Decision:
    """Outcome of one head of the model or of the weights."""

    kept: bool  # the classifier of the weights is taken; otherwise it starts at zero
    why: str  # for the report
    order: np.ndarray | None = None  # int [C], class id in the weights of each class of the model
    warning: str = ""  # what was lost or assumed
    unchecked: bool = False  # the names of its classes are not known


def leaf_name(head: str | None) -> str:
    """Returns the name of a head's parameters; an only head has no name of its own."""
    return "head" if head is None else f"head_{head}"


def decide(
    choice: str, source: ViViTConfig, config: ViViTConfig, names: tuple[ClassNames, ClassNames], same_features: bool
) -> tuple[dict[str, Decision], list[str]]:
    """Decides for each head whether it is taken from the weights: ({leaf: decision}, problems).

    `choice` is `InitFrom.head`, `names` those of `source` and of `config`, as far as they are known;
    `same_features`: the heads of both follow the same layer (the pre-logits layer, or the one before it).
    """
    target_heads, source_heads = dict(config.heads), dict(source.heads)
    if choice == "keep" and target_heads != source_heads:
        wrong = f"the weights classify {source.num_classes}, the model {config.num_classes}"
        return {}, [f"head='keep': {wrong}; head='reinit' starts the classifier at zero"]
    decisions, problems = {}, []
    for head, classes in target_heads.items():
        leaf = leaf_name(head)
        theirs, ours = (of_model.get(head or "label") for of_model in names)
        if choice == "reinit":
            decisions[leaf] = Decision(False, "head = reinit: at zero")
        elif head not in source_heads:
            decisions[leaf] = Decision(False, "head = match: the weights have no such head; it starts at zero")
        else:
            found = match(theirs or placeholders(source_heads[head]), ours or placeholders(classes), "the weights")
            unchecked, rest = not (theirs and ours and found.named), source_heads[head] - classes
            if choice == "keep" and not found.complete:
                problems.append(f"head='keep', but {leaf} has {found.how}; head='reinit' starts it at zero")
            elif choice == "keep" or (found.complete and same_features and not unchecked):
                warning = f"{found.how}; the other {rest} are dropped" if rest else found.warning
                warning = "that its classes have this order was not checked" if unchecked else warning
                decisions[leaf] = Decision(True, found.how, found.ids, warning and f"{leaf}: {warning}")
            else:
                why = "it follows another layer in the weights" if found.complete else found.how
                if unchecked:
                    why = f"the classes of {'the model' if theirs and not ours else 'the weights'} have no names"
                decisions[leaf] = Decision(False, f"head = match: {why}; it starts at zero", unchecked=unchecked)
    for head, classes in source_heads.items() if choice == "match" else ():
        leaf = leaf_name(head)
        decision = decisions.get(leaf, Decision(False, "the model has no such head"))
        if not decision.kept:
            shown = listed(names[0].get(head or "label") or placeholders(classes)).partition(" ")[2]
            keep = decision.unchecked and target_heads.get(head) == classes
            lost = f"the weights' classifier {leaf} of {classes} classes {shown} is not used: {decision.why}"
            lost += "; init_from.head=keep takes it as it is" if keep else ""
            decisions[leaf] = dataclasses.replace(decision, warning=lost)
    return decisions, problems
