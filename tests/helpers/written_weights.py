"""Weight files for tests, in every container."""

import importlib.util

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vivit_jax.convert.containers.open import open_container

RNG = np.random.default_rng(0)
TREE = {
    "a": {"kernel": RNG.normal(size=(3, 4)).astype(np.float32), "bias": RNG.normal(size=4)},
    "half": RNG.normal(size=(2, 3)).astype(np.float16),
    "brain": RNG.normal(size=(5,)).astype(ml_dtypes.bfloat16),
    "count": np.array(7, np.int32),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
}
FLAT = {"a/kernel": TREE["a"]["kernel"], "a/bias": TREE["a"]["bias"]} | {k: v for k, v in TREE.items() if k != "a"}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install 'vivit_jax[torch]'"
)
TORCH_KINDS = [pytest.param(kind, marks=needs_torch) for kind in ("torch", "torch legacy")]
KINDS = ["npz", "npz compressed", "safetensors", "msgpack", *TORCH_KINDS]


def write(kind, path):
    """Writes FLAT in a container; the name of the file does not show which."""
    if kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **FLAT)
    elif kind == "npz compressed":
        with open(path, "wb") as file:
            np.savez_compressed(file, **FLAT)
    elif kind == "safetensors":
        safetensors.numpy.save_file(FLAT, path, {"format": "np"})
    elif kind == "msgpack":
        path.write_bytes(flax.serialization.msgpack_serialize(TREE))
    else:
        import torch

        tensors = {
            name: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if name == "brain" else torch.from_numpy(x)
            for name, x in FLAT.items()
        }
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    return path


def assert_holds(container, expected):
    """Asserts names, shapes, types and values of a container's leaves."""
    assert set(container.leaves) == set(expected)
    for name, leaf in container.leaves.items():
        array = leaf.read()
        assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype) == (expected[name].shape, expected[name].dtype)
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def read_all(path):
    """Reads every array of a file."""
    with open_container(path) as container:
        return {name: leaf.read() for name, leaf in container.leaves.items()}
