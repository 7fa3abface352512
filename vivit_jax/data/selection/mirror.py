"""Class of the mirror image of a video, for flips that swap labels.

A class name has a direction if one of its words is in `WORDS`: "move-left", but not "leftover" or "upright". Its mirror
image is the class with the same name and every such word replaced by its opposite, as for "Pushing something from left
to right" and "Pushing something from right to left". If there is no such class, or more than one, there is none
(`NONE`): videos of the class must not be flipped. A class without a direction is its own mirror image.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

NONE = -1
_PAIRS = {f"left{end}": f"right{end}" for end in ("", "ward", "wards", "most")} | {"clockwise": "counterclockwise"}
# Word -> its opposite.
WORDS: Mapping[str, str] = _PAIRS | {second: first for first, second in _PAIRS.items()}
_ONE_WORD = re.compile(r"\b(?:counter|anti)[\W_]?clockwise\b")


def classes(names: Sequence[str]) -> np.ndarray:
    """Returns the class of the mirror image of each of C classes: int32 [C], or `NONE`."""
    words, result = list(map(_words, names)), np.arange(len(names), dtype=np.int32)
    for number, of_name in enumerate(words):
        mirrored = tuple(WORDS.get(word, word) for word in of_name)
        if mirrored != of_name:
            result[number] = words.index(mirrored) if words.count(mirrored) == 1 else NONE
    return result


def _words(name: str) -> tuple[str, ...]:
    joined = _ONE_WORD.sub("counterclockwise", name.casefold().replace("_", " "))
    return tuple(re.findall(r"[^\W_]+", joined))


def may_flip(labels: Mapping[str, np.ndarray], mirrors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the videos all of whose classes have a mirror image: bool [N]; `mirrors`: head -> result of `classes`."""
    result = np.ones(len(next(iter(labels.values()))), bool)
    for head, ids in labels.items():
        without = (mirrors[head][ids] == NONE) & (ids >= 0)
        result &= ~(without.any(axis=1) if ids.ndim == 2 else without)
    return result


def describe(
    class_names: Mapping[str, Sequence[str]], mirrors: Mapping[str, np.ndarray], never_flipped: int | None
) -> str:
    """Describes the effect of flips on labels for the log; "" if no class name has a direction.

    `mirrors`: head -> result of `classes`; `never_flipped`: number of videos, None if flips keep all labels.
    """
    pairs = [(class_names[head][i], i, image) for head, ids in mirrors.items() for i, image in enumerate(ids)]
    directed = [name for name, i, image in pairs if i != image]
    without = [name for name, _, image in pairs if image == NONE]
    if not directed or never_flipped is None:
        named = f"{len(directed)} classes that name a direction ({', '.join(directed[:3])}, ...)"
        return f"flips keep the labels of {named}: flip_labels='swap' swaps them" if directed else ""
    text = f"flips swap the labels of {len(directed) - len(without)} classes"
    never = f"; {never_flipped} videos are never flipped, as there is no class for the mirror image of "
    return text + (never + ", ".join(without[:3]) if without else "")
