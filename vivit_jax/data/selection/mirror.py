"""Which class a video belongs to when left and right are exchanged: for flips that swap labels.

The rule, by the names of the classes:

* A name names a direction if one of its words is in `WORDS`: left, leftward(s), leftmost, clockwise and their opposites
  (counterclockwise may be written counter-clockwise, anticlockwise or anti-clockwise). Words are what stands between
  anything but letters and digits, whatever their case: "move-left", but not "leftover" or "upright".
* Its mirror image is the class whose name is the same with every such word replaced by its opposite. So "Pushing
  something from left to right" and "Pushing something from right to left" are each other's.
* A class that names a direction, and of whose mirror image there is no class or more than one, has none (`NONE`): its
  videos must not be flipped.
* A class that names none is its own mirror image.

What the names do not tell, a data set states (`catalog.DatasetInfo.mirrored`), and that goes before the rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

NONE = -1
_PAIRS = (
    ("left", "right"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("leftmost", "rightmost"),
    ("clockwise", "counterclockwise"),
)
# Word -> its opposite.
WORDS: Mapping[str, str] = dict(_PAIRS) | {second: first for first, second in _PAIRS}
_ONE_WORD = re.compile(r"\b(?:counter|anti)[\W_]?clockwise\b")


def classes(names: Sequence[str], declared: Mapping[str, str | None] | None = None) -> np.ndarray:
    """The class of the mirror image of each class.

    Args:
      names: of the C classes of a head.
      declared: class -> class of its mirror image, None for none; goes before the rule. Classes that are not in `names`
        are no matter, unless they are the mirror image of one that is: that has none.

    Returns:
      int32 [C], class ids; `NONE` for a class whose mirror image belongs to none.
    """
    declared = declared or {}
    ids: dict[tuple[str, ...], list[int]] = {}
    for number, name in enumerate(names):
        ids.setdefault(_words(name), []).append(number)
    result = np.arange(len(names), dtype=np.int32)
    for number, name in enumerate(names):
        words = _words(name)
        if name in declared:
            other = declared[name]
            found = [] if other is None else ids.get(_words(other), [])
        elif any(word in WORDS for word in words):
            found = ids.get(tuple(WORDS.get(word, word) for word in words), [])
        else:
            continue
        result[number] = found[0] if len(found) == 1 else NONE
    return result


def _words(name: str) -> tuple[str, ...]:
    joined = _ONE_WORD.sub("counterclockwise", name.casefold().replace("_", " "))
    return tuple(re.findall(r"[^\W_]+", joined))


def may_flip(labels: Mapping[str, np.ndarray], mirrors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Videos all of whose classes have a mirror image: bool [N].

    Args:
      labels: head -> class ids, int32 [N], or [N, L] with -1 where there is none; as of `RecordSplit`.
      mirrors: head -> what `classes` returns.
    """
    result = np.ones(len(next(iter(labels.values()))), bool)
    for head, ids in labels.items():
        lacks = (mirrors[head][ids] == NONE) & (ids >= 0)
        result &= ~(lacks.any(axis=1) if ids.ndim == 2 else lacks)
    return result


def describe(class_names: Mapping[str, Sequence[str]], mirrors: Mapping[str, np.ndarray], kept: int | None) -> str:
    """What flips do to labels, in words; "" where no class names a direction.

    Args:
      class_names: head -> names.
      mirrors: head -> what `classes` returns.
      kept: videos that are never flipped; None where flips keep all labels.
    """
    every = [(class_names[head][own], own, other) for head, ids in mirrors.items() for own, other in enumerate(ids)]
    named = [name for name, own, other in every if own != other]
    lonely = [name for name, _, other in every if other == NONE]
    if not named:
        return ""
    if kept is None:
        return (
            f"flips keep the labels of {len(named)} classes that name a direction ({_some(named)}): "
            "flip_labels='swap' swaps them"
        )
    text = f"flips swap the labels of {len(named) - len(lonely)} classes"
    if not lonely:
        return text
    return f"{text}; {kept} videos are never flipped, as there is no class for the mirror image of {_some(lonely)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
