"""What became of every leaf when weights were fitted to a model."""

from __future__ import annotations

import dataclasses
from collections import Counter

from vivit_jax.models import ViViTConfig

OUTCOMES = ("loaded", "resized", "initialised", "dropped")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf.

    Attributes:
      name: ours; for `dropped` the source's, ours or as in the file.
      outcome: `loaded` as it was, `resized`, `initialised` on purpose, or `dropped` on purpose.
      how: from which leaf of the file, how it was resized, why it was initialised or dropped.
    """

    name: str
    outcome: str
    how: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Every leaf of the model and of the file, once.

    Attributes:
      source: where the weights came from and what model they are.
      target: the model they were fitted to.
      entries: one for each leaf.
    """

    source: str
    target: str
    entries: tuple[Entry, ...]

    def summary(self) -> str:
        """One line: from what to what, and how many leaves of each outcome."""
        counts = Counter(entry.outcome for entry in self.entries)
        numbers = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        return f"{self.source} -> {self.target}: {numbers}"

    def of_heads(self) -> list[Entry]:
        """What became of each classifier, an entry a head."""
        return [e for e in self.entries if e.name.startswith("head") and e.name.endswith("/kernel")]

    def __str__(self) -> str:
        """The summary, then a line for each leaf, grouped by outcome."""
        lines = [self.summary()]
        width = max((len(entry.name) for entry in self.entries), default=0)
        for outcome in OUTCOMES:
            lines += [
                f"  {outcome:11} {entry.name:{width}}  {entry.how}".rstrip()
                for entry in self.entries
                if entry.outcome == outcome
            ]
        return "\n".join(lines)


def in_words(config: ViViTConfig) -> str:
    """A model in a few words, for messages."""
    height, width = config.image_shape
    pixels = f"{height} x {width}" if height != width else str(height)
    if config.num_frames == 1 and config.tokenizer == "uniform_frames":
        h, w = config.tubelet_size[1:]
        return f"image ViT, patches {h} x {w}, d {config.hidden_size}, at {pixels}"
    heads = ", ".join(f"{classes} {name}".rstrip() for name, classes in ((n or "", c) for n, c in config.heads)) or "no"
    name = config.name if "custom" not in config.name else f"{config.name}, d {config.hidden_size}"
    kept = "" if config.frame_pooling else " over all tokens"
    return f"{name}, {config.attention}{kept}, {config.num_frames} frames at {pixels}, {heads} classes"
