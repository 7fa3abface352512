"""Labels in records of DMVR and Scenic: numbers, texts or both -> class ids and names for each head.

DMVR's own generator numbers the classes in the order of a Python set, which is another one in every run: the numbers of
a training and a validation file that were written by two runs do not mean the same. Where the records hold the texts
too, that is noticed here.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np

from vivit_jax.utils import storage

_TEXTS = ("text", "string")  # DMVR's and MediaSequence's name of the feature beside ".../index"


@dataclasses.dataclass(frozen=True)
class Head:
    """Where the class of a head is in a record.

    Attributes:
      name: of the head.
      feature: of the context.
      first, count: the class is the one value of `feature` in [first, first + count), less `first`; with `count` None
        the feature has one value. Scenic keeps the labels of EPIC-Kitchens as [noun, 300 + verb] in one feature.
    """

    name: str
    feature: str
    first: int = 0
    count: int | None = None

    @property
    def texts(self) -> list[str]:
        """Features that may hold the class's name."""
        base, _, last = self.feature.rpartition("/")
        return [f"{base}/{name}" for name in _TEXTS] if base and last == "index" else []


DEFAULT = Head("label", "clip/label/index")


def parse_head(text: str) -> Head:
    """`NAME=FEATURE[:FIRST:COUNT]` as a `Head`.

    Raises:
      ValueError: another form.
    """
    name, _, rest = text.partition("=")
    parts = rest.split(":")
    try:
        if not name.isidentifier() or not parts[0] or len(parts) not in (1, 3):
            raise ValueError
        first, count = (int(parts[1]), int(parts[2])) if len(parts) == 3 else (0, None)
        if count is not None and count < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--head={text}: it must be NAME=FEATURE or NAME=FEATURE:FIRST:COUNT, "
            "as in --head=verb=clip/label/index:300:97"
        ) from None
    return Head(name, parts[0], first, count)


def read_class_names(flags: Sequence[str], heads: Sequence[Head]) -> dict[str, list[str]]:
    """Head -> names of `--class_names=[HEAD=]FILE`, in the order of the class ids.

    Raises:
      ValueError: a file that is absent or of another form, or a head that there is not.
    """
    names: dict[str, list[str]] = {}
    known = {head.name: head for head in heads}
    for flag in flags:
        head, _, file = flag.rpartition("=")
        head = head or (heads[0].name if len(heads) == 1 else "")
        path = storage.path(file)
        if head not in known:
            raise ValueError(f"--class_names={flag}: give HEAD=FILE with a head of {', '.join(known)}")
        if not path.is_file():
            raise ValueError(f"--class_names={flag}: no file {path}")
        if path.suffix == ".json":
            loaded = json.loads(path.read_text(encoding="utf-8"))
            names[head] = loaded.get(head) if isinstance(loaded, dict) else loaded
        elif path.suffix == ".csv":
            lines = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
            rows = {row.get("id"): row.get("key") for row in csv.DictReader(lines)}
            names[head] = [rows.get(str(number)) for number in range(len(rows))]
        else:
            names[head] = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not names[head] or not all(isinstance(name, str) for name in names[head]):
            raise ValueError(f"--class_names={flag}: no list of names for head {head!r} in it, in the order of the ids")
        count = known[head].count
        if count is not None and len(names[head]) != count:
            raise ValueError(
                f"--class_names={flag}: {len(names[head])} names, but --head gives {head!r} {count} classes"
            )
    return names


def features(heads: Sequence[Head], kinds: Mapping[str, str | None]) -> dict[str, str]:
    """Feature -> kind of all that hold labels.

    Args:
      heads: of the labels.
      kinds: of the features that a record has, as in protobuf ("int64_list").

    Raises:
      ValueError: a head whose feature is not there, and no text for it.
    """
    wanted = {}
    for head in heads:
        found = {name: kinds[name] for name in (head.feature, *head.texts) if kinds.get(name)}
        bad = [name for name, kind in found.items() if kind == "float_list"]
        if bad or not found:
            what = (
                f"{bad[0]!r} holds floats" if bad else f"neither {' nor '.join([head.feature, *head.texts])} is there"
            )
            there = ", ".join(sorted(name for name, kind in kinds.items() if kind != "float_list"))
            raise ValueError(
                f"head {head.name!r}: {what}; name an integer or bytes feature with --head={head.name}=FEATURE. "
                f"The records have {there or 'none'}"
            )
        wanted |= found
    return wanted


def resolve(
    records: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    heads: Sequence[Head],
    class_names: Mapping[str, Sequence[str]],
    labels: str,
) -> tuple[dict[str, dict[int, dict[str, int]]], dict[str, list[str]], dict[str, dict[int, str]]]:
    """The class ids of all records.

    Args:
      records: split -> number of a record -> feature -> its values.
      heads: of the labels.
      class_names: head -> names, where they were given.
      labels: "index", "text" or "auto".

    Returns:
      split -> record -> head -> class id; head -> names of all classes; split -> record -> why it has no label.

    Raises:
      ValueError: numbers and texts that do not agree, or no number (text) where it was asked for.
    """
    ids = {split: {number: {} for number in found} for split, found in records.items()}
    bad: dict[str, dict[int, str]] = {split: {} for split in records}
    names = {}
    for head in heads:
        pairs = {
            split: {number: _values(head, values) for number, values in found.items()}
            for split, found in records.items()
        }
        every = [pair for found in pairs.values() for pair in found.values() if not isinstance(pair, str)]
        by_text = labels == "text" or (labels == "auto" and all(number is None for number, _ in every))
        names[head.name] = _names(head, every, class_names.get(head.name), by_text)
        place = {name: number for number, name in enumerate(names[head.name])}
        for split, found in pairs.items():
            for record, pair in found.items():
                number, text = (None, None) if isinstance(pair, str) else pair
                if isinstance(pair, str):
                    bad[split].setdefault(record, pair)
                elif by_text and text not in place:
                    bad[split].setdefault(record, f"head {head.name!r}: the label {text!r} is none of the classes")
                elif not by_text and (number is None or not 0 <= number < len(place)):
                    limit = f"0 to {len(place) - 1}"
                    bad[split].setdefault(record, f"head {head.name!r}: class {number} is outside {limit}")
                else:
                    ids[split][record][head.name] = place[text] if by_text else number
    for split, reasons in bad.items():
        for record in reasons:
            del ids[split][record]
    return ids, names, bad


def _values(head: Head, record: Mapping[str, np.ndarray]) -> tuple[int | None, str | None] | str:
    """(number, text) of a record's class, None for what it does not hold; or why there is none."""
    values = record.get(head.feature, np.zeros(0, np.int64))
    texts = next((record[name] for name in head.texts if len(record.get(name, ()))), np.zeros(0, object))
    if values.dtype == object:  # the feature named is itself a text
        values, texts = np.zeros(0, np.int64), values
    if len(values) == 0 and len(texts) == 0:
        return f"head {head.name!r}: no label in {head.feature}"
    places = np.arange(len(values))
    if head.count is not None:
        places = np.flatnonzero((values >= head.first) & (values < head.first + head.count))
    if len(values) and len(places) != 1:
        return (
            f"head {head.name!r}: {head.feature} holds {values.tolist()}, of which one must be the class "
            f"(--head={head.name}=FEATURE:FIRST:COUNT picks one of several)"
        )
    if len(texts) == len(values):
        text = texts[places[0]]
    elif len(texts) == 1 and not len(values):
        text = texts[0]
    else:
        text = None  # texts that cannot be told apart
    number = int(values[places[0]]) - head.first if len(values) else None
    return number, text.decode("utf-8", "replace") if text is not None else None


def _names(
    head: Head, pairs: Sequence[tuple[int | None, str | None]], given: Sequence[str] | None, by_text: bool
) -> list[str]:
    texts = {text for _, text in pairs if text is not None}
    if by_text:
        if not texts and pairs:
            raise ValueError(
                f"head {head.name!r}: the records hold no texts of the classes, only numbers: --labels=index"
            )
        return list(given) if given is not None else sorted(texts)
    named: dict[int, str] = dict(enumerate(given)) if given is not None else {}
    numbered = {name: number for number, name in named.items()}
    for number, text in pairs:
        if number is None or text is None or (given is not None and not 0 <= number < len(given)):
            continue
        if named.setdefault(number, text) != text or numbered.setdefault(text, number) != number:
            other = named[number] if named[number] != text else f"also class {numbered[text]}"
            raise ValueError(
                f"head {head.name!r}: class {number} is {text!r} in one record and {other!r} elsewhere. DMVR's "
                "generator numbers the classes anew in every run; --labels=text takes the texts instead of the numbers"
            )
    if given is not None:
        return list(given)
    largest = max((number for number, _ in pairs if number is not None), default=-1)
    # A wrong number among millions must not make a table of as many names.
    if head.count is None and largest >= 1_000_000:
        raise ValueError(
            f"head {head.name!r}: class {largest} is too large for a class id; name another feature (--head)"
        )
    return [named.get(number, str(number)) for number in range(head.count or largest + 1)]
