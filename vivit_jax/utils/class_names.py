"""Which classes of a model and of a data set are the same, by their names."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

_IGNORED = re.compile(r"[\s_\-\u2010-\u2015]+")
_SHOWN = 4  # names in a message


class ClassNamesError(ValueError):
    """Classes of a model and of data that do not fit; the message shows the difference and the way out."""


def placeholders(count: int) -> list[str]:
    """Returns the names of classes without names, those of Hugging Face."""
    return [f"LABEL_{i}" for i in range(count)]


def are_placeholders(names: Sequence[str]) -> bool:
    """Whether names only number the classes: LABEL_0 or 0, ..."""
    return all(re.fullmatch(rf"(label)?{i}", key(name)) for i, name in enumerate(names))


def key(name: str) -> str:
    """Returns what spellings of a name have in common: its characters without case, blanks, `_` and `-`."""
    folded = unicodedata.normalize("NFKC", str(name)).casefold()
    return _IGNORED.sub("", folded) or folded


def class_ids(names: Iterable[str], among: Sequence[str]) -> np.ndarray:
    """Returns the position in `among` of each name, int [C]; -1 where it is absent, or where two spellings fit."""
    exact = {name: i for i, name in enumerate(among)}
    by_key: dict[str, int] = {}
    for i, name in enumerate(among):
        by_key[key(name)] = -1 if key(name) in by_key else i
    return np.array([exact.get(name, by_key.get(key(name), -1)) for name in names], np.int64)


@dataclasses.dataclass(frozen=True)
class Match:
    """How the classes of a data set are found among those of a model."""

    ids: np.ndarray  # int [C], class id in the model of each class of the data; -1 where the model lacks it
    named: bool  # False: one of them has no names, and the order is taken to be the same
    how: str  # "the same 10 classes in another order"
    warning: str = ""  # what was assumed

    @property
    def complete(self) -> bool:
        """Whether the model has all classes of the data."""
        return bool((self.ids >= 0).all())


def match(model: Sequence[str], data: Sequence[str], where: str = "the model") -> Match:
    """Finds the classes of a data set among those of a model by name, ignoring case, blanks, `_` and `-`.

    Where one side has no names (`are_placeholders`), as many classes are in the same order. `where`: the model.
    """
    model, data = [str(name) for name in model], [str(name) for name in data]
    if model == data:
        return Match(np.arange(len(data)), True, f"the same {len(data)} classes")
    ids = class_ids(data, model)
    whose = where if are_placeholders(model) else "the data" if are_placeholders(data) else None
    if whose and (ids < 0).all():
        unnamed = f"the classes of {whose} have no names"
        if len(model) == len(data):
            return Match(np.arange(len(data)), False, unnamed, f"{unnamed}: that the order is the same was not checked")
        return Match(ids, False, f"{len(model)} classes in {where}, {len(data)} in the data, and {unnamed}")
    values, counts = np.unique(ids, return_counts=True)
    ids[np.isin(ids, values[counts > 1])] = -1  # several classes of the data are one of the model
    missing = [name for name, i in zip(data, ids, strict=True) if i < 0]
    others = [model[i] for i in np.setdiff1d(np.arange(len(model)), ids)]
    if missing:
        sides = f"{listed(missing)} only in the data, {listed(others)} only in {where}"
        return Match(ids, True, f"other classes: {len(model)} in {where}, {len(data)} in the data; {sides}")
    count = f"{len(data)} of the {len(model)} classes of {where}" if others else f"the same {len(data)} classes"
    how = f"{count} in {'the same' if (np.diff(ids) > 0).all() else 'another'} order"
    respelled = [f"{name!r} is {model[i]!r} in {where}" for name, i in zip(data, ids, strict=True) if name != model[i]]
    warning = f"{how}, but {len(respelled)} are spelled otherwise: {respelled[0]}" if respelled else ""
    return Match(ids, True, how, warning)


def listed(names: Sequence[str]) -> str:
    """Returns the number of names and the first few."""
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} ({shown})" if names else "none"
