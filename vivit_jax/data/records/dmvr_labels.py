"""Labels in records of DMVR and Scenic: numbers, texts or both -> class ids and names of each head.

DMVR's generator numbers the classes in the order of a Python set, which differs in every run: numbers in a training and
a validation file written by two runs do not mean the same classes. Where the records hold texts too, this is detected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Head:
    """Where the class of a head is in a record.

    Attributes:
      name: name of the head.
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


def label_features(heads: Sequence[Head], kinds: Mapping[str, str]) -> dict[str, str]:
    """Returns {feature: kind} of all features that hold labels.

    Args:
      heads: heads to read.
      kinds: feature -> kind of all features in the records, as in protobuf ("int64_list").

    Raises:
      ValueError: neither number nor text of a head exists.
    """
    features = {}
    for head in heads:
        candidates = [head.feature, *head.text_features]
        existing = {name: kinds[name] for name in candidates if name in kinds}
        floats = [name for name, kind in existing.items() if kind == "float_list"]
        if floats or not existing:
            problem = f"{floats[0]!r} holds floats" if floats else f"neither {' nor '.join(candidates)} is there"
            others = ", ".join(sorted(name for name, kind in kinds.items() if kind != "float_list"))
            raise ValueError(
                f"head {head.name!r}: {problem}; name an integer or bytes feature with --head={head.name}=FEATURE. "
                f"The records have {others or 'none'}"
            )
        features |= existing
    return features


def read_label(head: Head, record: Mapping[str, np.ndarray]) -> Label | str:
    """Reads the label of a head from the features of a record; returns the reason if there is none."""
    values = record.get(head.feature, np.zeros(0, np.int64))
    texts = next((record[name] for name in head.text_features if len(record.get(name, ()))), np.zeros(0, object))
    if values.dtype == object:  # `head.feature` itself holds text
        values, texts = np.zeros(0, np.int64), values
    if len(values) == 0 and len(texts) == 0:
        return f"head {head.name!r}: no label in {head.feature}"
    selected = np.arange(len(values))
    if head.count is not None:
        selected = np.flatnonzero((values >= head.first) & (values < head.first + head.count))
    if len(values) and len(selected) != 1:
        return (
            f"head {head.name!r}: {head.feature} holds {values.tolist()}, of which one must be the class "
            f"(--head={head.name}=FEATURE:FIRST:COUNT picks one of several)"
        )
    number, text = (int(values[selected[0]]) - head.first if len(values) else None), None
    if len(texts) == len(values):
        text = texts[selected[0]]
    elif len(texts) == 1 and not len(values):
        text = texts[0]
    return Label(number, None if text is None else text.decode("utf-8", "replace"))


def class_ids(
    labels: Mapping[Hashable, Mapping[str, Label | str]],
    heads: Sequence[Head],
    class_names: Mapping[str, Sequence[str]],
    source: str,
) -> tuple[dict[Hashable, dict[str, int]], dict[str, list[str]], dict[Hashable, str]]:
    """Assigns class ids.

    Args:
      labels: record -> head -> what `read_label` returned.
      heads: heads to assign.
      class_names: head -> names, where the user gave them.
      source: what decides the class: "index", "text", or "auto" (the number where there is one).

    Returns:
      (record -> head -> class id, head -> class names, record -> reason why it has no class id).

    Raises:
      ValueError: numbers and texts that do not agree, or texts asked for where there are none.
    """
    ids, reasons, names = {record: {} for record in labels}, {}, {}
    for head in heads:
        valid = [of_record[head.name] for of_record in labels.values() if not isinstance(of_record[head.name], str)]
        by_text = source == "text" or (source == "auto" and all(label.number is None for label in valid))
        names[head.name] = _class_names(head, valid, class_names.get(head.name), by_text)
        id_of = {name: number for number, name in enumerate(names[head.name])}
        for record, of_record in labels.items():
            label = of_record[head.name]
            if isinstance(label, str):
                reasons.setdefault(record, label)
            elif by_text and label.text not in id_of:
                reasons.setdefault(record, f"head {head.name!r}: the label {label.text!r} is none of the classes")
            elif not by_text and (label.number is None or not 0 <= label.number < len(id_of)):
                limits = f"0 to {len(id_of) - 1}"
                reasons.setdefault(record, f"head {head.name!r}: class {label.number} is outside {limits}")
            else:
                ids[record][head.name] = id_of[label.text] if by_text else label.number
    return {record: of_record for record, of_record in ids.items() if record not in reasons}, names, reasons


def _class_names(head: Head, labels: Sequence[Label], given: Sequence[str] | None, by_text: bool) -> list[str]:
    if by_text:
        texts = {label.text for label in labels if label.text is not None}
        if not texts and labels:
            raise ValueError(
                f"head {head.name!r}: the records hold no texts of the classes, only numbers: --labels=index"
            )
        return list(given) if given is not None else sorted(texts)

    # By number: where there are texts too, each number must have one text, and each text one number.
    name_of = dict(enumerate(given)) if given is not None else {}
    number_of = {name: number for number, name in name_of.items()}
    for number, text in labels:
        if number is None or text is None or (given is not None and not 0 <= number < len(given)):
            continue
        if name_of.setdefault(number, text) != text or number_of.setdefault(text, number) != number:
            other = name_of[number] if name_of[number] != text else f"also class {number_of[text]}"
            raise ValueError(
                f"head {head.name!r}: class {number} is {text!r} in one record and {other!r} elsewhere. DMVR's "
                "generator renumbers the classes in every run; --labels=text takes the texts instead of the numbers"
            )
    if given is not None:
        return list(given)
    largest = max((label.number for label in labels if label.number is not None), default=-1)
    # One wrong number among millions must not make a table of as many names.
    if head.count is None and largest >= 1_000_000:
        raise ValueError(
            f"head {head.name!r}: class {largest} is too large for a class id; name another feature (--head)"
        )
    return [name_of.get(number, str(number)) for number in range(head.count or largest + 1)]
