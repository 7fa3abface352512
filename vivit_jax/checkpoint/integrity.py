"""Verification of checkpoints: checksums of all arrays; names and shapes; in all processes alike."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from vivit_jax import distributed
from vivit_jax.utils.trees import path_name

T = TypeVar("T")


class CheckpointError(Exception):
    """A checkpoint cannot be found, read or verified, or belongs to another model."""


class UnavailableError(CheckpointError):
    """The storage did not answer, or refused; this says nothing about the checkpoint, which stays where it is."""


class OtherModelError(CheckpointError):
    """A valid checkpoint of another model, or in the wrong place; it is not quarantined, the user must decide."""


_KINDS = (UnavailableError, OtherModelError, CheckpointError)  # of errors, the worst first


def together(read: Callable[[], T], choice: Callable[[T], Any] = bool) -> T:
    """Returns `read()`, which waits for no other process; where it fails in one, the worst error is raised in all.

    Raises UnavailableError where the processes read different things, by `choice`. All call it equally often.
    """
    found = failure = None
    try:
        found = read()
        mine = [len(_KINDS), str(choice(found))]
    except (CheckpointError, OSError) as error:
        failure, mine = error, [_KINDS.index(type(error)) if type(error) in _KINDS else 0, str(error)]
    outcomes = [json.loads(text) for text in distributed.gather(json.dumps(mine))]
    worst = min(outcomes)
    if worst[0] < len(_KINDS):
        raise failure if worst == mine else _KINDS[worst[0]](f"process {outcomes.index(worst)}: {worst[1]}")
    if any(other != mine for other in outcomes):
        seen = ", ".join(f"process {process} {outcome[1]}" for process, outcome in enumerate(outcomes))
        raise UnavailableError(f"the processes see different checkpoints ({seen}); is the workdir on a shared disk?")
    return found


def checksums(tree: Any, ordered: bool = False) -> dict[str, int]:
    """Returns {path of a leaf: sum of its words modulo 2^32}: any flipped bit changes it, sharding does not.

    `ordered`: a sum of its words, each times an odd number of its position: it changes where numbers swap positions.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True) if jax.tree.leaves(tree) else ((), ())
    # One program for all leaves. With one for each, their all-reduces are under way at the same time, and virtual CPU
    # devices on few cores wait for each other until XLA aborts.
    sums = jax.device_get(_sums(leaves, ordered)) if leaves else ()
    return {path_name(path): int(value) for path, value in zip(paths, sums, strict=True)}


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaves: Sequence[jax.Array], ordered: bool) -> jax.Array:
    return jnp.stack([_sum(leaf, ordered) for leaf in leaves])


def _sum(leaf: jax.Array, ordered: bool) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    # Its bits, in its shape; 8-byte numbers become two words in a last dimension.
    words = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    if ordered:
        position = jnp.zeros(words.shape, jnp.uint32)
        for axis in range(words.ndim):
            stride = math.prod(words.shape[axis + 1 :]) % 2**32
            position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
        # Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4); odd, so that no bit of a word is lost.
        words *= (2 * position + 1) * jnp.uint32(2654435761)
    return jnp.sum(words, dtype=jnp.uint32)


def digest(metadata: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON-safe metadata, without its own field `digest`; 64 hex digits."""
    text = json.dumps({name: value for name, value in metadata.items() if name != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_params(params: Any, stored: Mapping[str, Any], where: str) -> None:
    """Raises OtherModelError, listing the differences, unless model and checkpoint have the same leaves and shapes."""
    if differences := _differences(params, stored, "model"):
        advice = f"a new run starts from these weights with --config.init_from.path={where}"
        problem = f"{where} holds another model:\n  {differences}"
        raise OtherModelError(f"{problem}\nUse the config it was trained with, or another --workdir; {advice}")


def check_optimizer(opt_state: Any, stored: Any, where: str) -> None:
    """Raises OtherModelError unless optimizer and checkpoint have the same leaves and shapes."""
    if differences := _differences(opt_state, stored, "optimizer"):
        advice = "to change it, start another run from these weights (config.init_from.path)."
        problem = f"{where} holds the state of another optimizer:\n  {differences}"
        raise OtherModelError(f"{problem}\nTraining resumes with the optimizer it began with; {advice}")


def _differences(expected: Any, stored: Any, what: str) -> str:
    """Returns a line for each leaf that two trees do not have in common; '' for none, the number of those after 12."""
    expected, stored = (
        {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree) if hasattr(x, "shape")}
        for tree in (expected, stored)
    )
    lines = [
        f"{name}: {what} {expected[name]}, checkpoint {stored[name]}"
        for name in sorted(expected.keys() & stored.keys())
        if expected[name] != stored[name]
    ]
    lines += [f"{name}: missing in the checkpoint" for name in sorted(expected.keys() - stored.keys())]
    lines += [f"{name}: not in this {what}" for name in sorted(stored.keys() - expected.keys())]
    return "\n  ".join(lines[:12]) + (f"\n  and {len(lines) - 12} more" if len(lines) > 12 else "")
