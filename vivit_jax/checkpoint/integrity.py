"""Whether a checkpoint is sound, and whether it is of this model: checksums of every leaf, names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vivit_jax.utils.trees import path_name


class CheckpointError(Exception):
    """A checkpoint that cannot be found, read, verified, or that belongs to another model."""


class OtherModelError(CheckpointError):
    """A sound checkpoint whose parameters are not this model's: nothing to set aside, the user must choose."""


@jax.jit
def _leaf_sum(leaf: jax.Array) -> jax.Array:
    """Sum modulo 2^32 of a leaf's bits: the same for any layout on devices, changed by any single flipped bit."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(
        leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    )
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """{leaf path: sum modulo 2^32 of its bits}, independent of sharding and device count."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = [(path_name(path), _leaf_sum(leaf)) for path, leaf in leaves]
    return {name: int(value) for name, value in sums}


def check_against(params: Any, stored: Mapping[str, Any], where: str) -> None:
    """Raises OtherModelError unless two trees have the same leaves and shapes; lists what differs.

    Args:
      params: the model's parameters (arrays or ShapeDtypeStructs), nested dicts.
      stored: the checkpoint's, likewise.
      where: named in the error.
    """
    wrong = _differences(params, stored, "model")
    if wrong:
        raise OtherModelError(
            f"{where} holds another model:\n  {_shown(wrong)}\nUse the config it was trained with, or another workdir."
        )


def check_optimizer(opt_state: Any, stored: Any, where: str) -> None:
    """Raises OtherModelError unless two optimizers keep the same state; arguments as those of `check_against`."""
    wrong = _differences(opt_state, stored, "optimizer")
    if wrong:
        raise OtherModelError(
            f"{where} holds the state of another optimizer:\n  {_shown(wrong)}\nTraining goes on with the optimizer it "
            "began with; to change it, start another run from these weights (config.init_from.path)."
        )


def _differences(ours: Any, theirs: Any, what: str) -> list[str]:
    """A line for each leaf that two trees do not have in common."""
    ours, theirs = (
        {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree) if hasattr(x, "shape")}
        for tree in (ours, theirs)
    )
    wrong = [
        f"{n}: {what} {ours[n]}, checkpoint {theirs[n]}"
        for n in sorted(ours.keys() & theirs.keys())
        if ours[n] != theirs[n]
    ]
    wrong += [f"{n}: missing in the checkpoint" for n in sorted(ours.keys() - theirs.keys())]
    return wrong + [f"{n}: not in this {what}" for n in sorted(theirs.keys() - ours.keys())]


def _shown(lines: list[str]) -> str:
    return "\n  ".join(lines[:12]) + (f"\n  and {len(lines) - 12} more" if len(lines) > 12 else "")
