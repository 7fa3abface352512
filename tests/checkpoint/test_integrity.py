"""Checksums of the leaves of a tree."""

import jax
import numpy as np

from vivit_jax.checkpoint import checksums, integrity


def test_ordered_checksums_detect_swaps():
    leaf = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    swapped = leaf.copy()
    swapped[0, 1], swapped[1, 1] = leaf[1, 1], leaf[0, 1]
    flipped = leaf.copy()
    flipped.view(np.uint32)[1, 2, 3] ^= 1 << 31
    results = [checksums({"a": {"b": values}}, ordered=True) for values in (leaf, swapped, flipped, leaf.copy())]
    assert list(results[0]) == ["a/b"]
    assert results[0] == results[3]
    assert len({result["a/b"] for result in results}) == 3
    # By definition: each word times an odd factor of its index, modulo 2^32.
    words = leaf.reshape(-1).view(np.uint32).astype(object)
    expected = sum(int(word) * (2 * index + 1) * 2654435761 for index, word in enumerate(words)) % 2**32
    assert results[0]["a/b"] == expected
    plain = [checksums({"a": values})["a"] for values in (leaf, swapped, flipped)]
    assert plain[0] == plain[1] != plain[2]


def test_all_leaves_are_one_program(monkeypatch):
    """Separate programs have their collectives under way at once; virtual CPU devices on few cores then hang."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("fsdp",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    tree = {"a": jax.device_put(np.arange(8.0), sharded), "b": jax.device_put(np.ones((4, 3), np.int8), sharded)}
    calls = []
    sums = integrity._sums
    monkeypatch.setattr(integrity, "_sums", lambda *arguments: calls.append(1) or sums(*arguments))
    assert checksums(tree) == checksums(jax.tree.map(np.asarray, tree))
    assert len(calls) == 2
    assert checksums({}) == {}
