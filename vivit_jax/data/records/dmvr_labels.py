"""Labels in records of DMVR and Scenic: numbers, texts or both -> class ids and names of each head.

DMVR's generator numbers the classes in the order of a Python set, which differs in every run: numbers in a training and
a validation file written by two runs do not mean the same classes. Where the records hold texts too, this is detected.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Head:
    """Where the class of a head is in a record.

    Attributes:
      feature: context feature that holds the class.
      first, count: the class is the one value of `feature` in [first, first + count), minus `first`; if `count` is
        None, the feature has one value. Scenic stores labels of EPIC-Kitchens as [noun, 300 + verb] in one feature.
    """

    name: str
    feature: str
    first: int = 0
    count: int | None = None

    @property
    def text_features(self) -> list[str]:
        """Features that may hold the class name: DMVR's and MediaSequence's name beside ".../index"."""
        base, _, last = self.feature.rpartition("/")
        return [f"{base}/text", f"{base}/string"] if base and last == "index" else []


class Label(NamedTuple):
    """The class of one head in one record; None for what the record does not hold."""

    number: int | None
    text: str | None


DEFAULT = Head("label", "clip/label/index")


def read_label(head: Head, context: Mapping[str, Sequence[int | bytes | float]]) -> Label | str:
    """Reads the label of a head from the context features of a record; returns the reason if there is none."""
    features = [head.feature, *head.text_features]
    numbers = [value for value in context.get(head.feature, ()) if isinstance(value, int)]
    named = ([value for value in context.get(name, ()) if isinstance(value, bytes)] for name in features)
    texts = [text.decode("utf-8", "replace") for text in next(filter(None, named), [])]
    if not numbers and not texts:
        others = ", ".join(sorted(context.keys() - set(features))) or "none"
        advice = f"name an integer or bytes feature, --head={head.name}=FEATURE, of {others}"
        return f"head {head.name!r}: no label in {', '.join(features)}; {advice}"
    if not numbers:
        problem = f"the record holds {len(texts)} texts, {texts[:3]}, of which one must be the class"
        return Label(None, texts[0]) if len(texts) == 1 else f"head {head.name!r}: {problem}"
    wanted = set(numbers) if head.count is None else range(head.first, head.first + head.count)
    selected = [i for i, number in enumerate(numbers) if number in wanted]
    if len(selected) != 1:
        way_out = f"--head={head.name}=FEATURE:FIRST:COUNT picks one of several"
        return f"head {head.name!r}: {head.feature} holds {numbers}, of which one must be the class ({way_out})"
    index = selected[0]
    return Label(numbers[index] - head.first, texts[index] if len(texts) == len(numbers) else None)


def class_ids(
    head: Head, labels: Mapping[Hashable, Label | str], given: Sequence[str] | None, source: str
) -> tuple[dict[Hashable, int], list[str], dict[Hashable, str]]:
    """Assigns class ids of a head: returns (record -> id, class names, record -> reason why it has none).

    `labels` has the results of `read_label`, `given` the class names if the user gave them. `source` decides the class:
    "index", "text", or "auto" (the number where there is one). ValueError if numbers and texts contradict each other.
    """
    valid = [label for label in labels.values() if isinstance(label, Label)]
    by_text = source == "text" or (source == "auto" and all(label.number is None for label in valid))
    texts = {label.text for label in valid if label.text is not None}
    if by_text and valid and not texts:
        raise ValueError(f"head {head.name!r}: no record holds one text for each number of a class: --labels=index")
    names = list(given or sorted(texts)) if by_text else _names_by_number(head, valid, given)
    id_of = {name: number for number, name in enumerate(names)}
    ids, reasons = {}, {}
    for record, label in labels.items():
        if isinstance(label, str):
            reasons[record] = label
        elif by_text and label.text not in id_of:
            reasons[record] = f"head {head.name!r}: the label {label.text!r} is none of the classes"
        elif not by_text and label.number is None:
            reasons[record] = f"head {head.name!r}: no number in {head.feature}"
        elif not by_text and not 0 <= label.number < len(names):
            reasons[record] = f"head {head.name!r}: class {label.number} is outside 0 to {len(names) - 1}"
        else:
            ids[record] = id_of[label.text] if by_text else label.number
    return ids, names, reasons


def _names_by_number(head: Head, labels: Sequence[Label], given: Sequence[str] | None) -> list[str]:
    """Returns the name of each number: given, or its text; checks that each has one text and each text one number."""
    name_of = dict(enumerate(given or ()))
    number_of = {name: number for number, name in name_of.items()}
    for number, text in labels:
        if number is None or text is None or (given is not None and number not in name_of):
            continue
        if name_of.setdefault(number, text) != text or number_of.setdefault(text, number) != number:
            other = name_of[number] if name_of[number] != text else f"also class {number_of[text]}"
            hint = "every DMVR run assigns new class numbers; --labels=text uses the label texts instead"
            raise ValueError(f"head {head.name!r}: class {number} is {text!r} in a record, {other!r} elsewhere. {hint}")
    if given is not None:
        return list(given)
    count = head.count or 1 + max((label.number for label in labels if label.number is not None), default=-1)
    if head.count is None and count > 1_000_000:  # one wrong number would make a table of as many names
        raise ValueError(f"head {head.name!r}: class {count - 1} is too large for a class id; give another --head")
    return [name_of.get(number, str(number)) for number in range(count)]
