"""Models that are not ViViT or ViT, by a name that only they have; they are refused by name."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Pattern -> the model, and what of it ViViT does not have. The first that matches counts.
_MODELS: Mapping[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def name_of(leaves: Mapping[str, Any]) -> str | None:
    """Returns which other model the leaves are of, and why ViViT cannot have its weights; None for none known."""
    for pattern, model in _MODELS.items():
        if name := next((name for name in leaves if re.search(pattern, name)), None):
            return f"{model} ({name})"
    return None
