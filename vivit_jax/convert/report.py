"""Report of a weight initialisation: the outcome of every leaf."""

import dataclasses
from collections import Counter

from vivit_jax.models import ViViTConfig

OUTCOMES = ("loaded", "resized", "initialised", "dropped")


@dataclasses.dataclass(frozen=True)
class Entry:
    """The outcome of one leaf."""

    name: str  # in our model; for `dropped` in the weights
    outcome: str  # one of OUTCOMES
    how: str  # the leaf in the file, how it was resized, or why it was initialised or dropped


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of every leaf of the model and of the weights, each once."""

    source: str  # the file and its model
    target: str  # the model that was filled
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()  # what was lost or assumed

    def summary(self) -> str:
        """Returns one line: source, target, and the number of leaves by outcome."""
        counts = Counter(entry.outcome for entry in self.entries)
        by_outcome = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        return f"{self.source} -> {self.target}: {by_outcome}"

    def head_entries(self) -> list[Entry]:
        """Returns the outcome of each classifier, one entry a head."""
        return [entry for entry in self.entries if entry.name.startswith("head") and entry.name.endswith("/kernel")]

    def __str__(self) -> str:
        """Returns the summary, the warnings, and a line for each leaf, grouped by outcome."""
        lines = [self.summary(), *(f"  warning: {line}" for line in self.warnings)]
        width = max((len(entry.name) for entry in self.entries), default=0)
        entries = sorted(self.entries, key=lambda entry: OUTCOMES.index(entry.outcome))
        lines += [f"  {entry.outcome:11} {entry.name:{width}}  {entry.how}".rstrip() for entry in entries]
        return "\n".join(lines)


def describe_model(config: ViViTConfig) -> str:
    """Returns a short description of a model, for messages."""
    height, width = config.image_shape
    pixels = f"{height} x {width}" if height != width else str(height)
    if config.num_frames == 1 and config.tokenizer == "uniform_frames":
        h, w = config.tubelet_size[1:]
        return f"image ViT, patches {h} x {w}, d {config.hidden_size}, at {pixels}"
    heads = ", ".join(f"{classes} {head or ''}".rstrip() for head, classes in config.heads) or "no"
    name = config.name if "custom" not in config.name else f"{config.name}, d {config.hidden_size}"
    return f"{name}, {config.attention}, {config.num_frames} frames at {pixels}, {heads} classes"
