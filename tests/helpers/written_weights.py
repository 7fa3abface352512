"""Files of weights for tests, in every container; PyTorch's without PyTorch."""

import collections
import pickle
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors.numpy

from vivit_jax.convert.containers.open import open_weights

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


def write(kind, path):
    """FLAT in a container, under a name that tells nothing."""
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
    elif kind == "torch":
        write_torch(path, FLAT)
    return path


def write_torch(path, arrays, *, tree=None, prefix="archive/", big=False, method=zipfile.ZIP_STORED):
    """A PyTorch file without PyTorch: `tree` is the pickle's opcodes, by default a dict of all arrays."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{prefix}data.pkl", b"\x80\x02" + (tree or as_dict(arrays)) + b".")
        archive.writestr(f"{prefix}byteorder", "big" if big else "little")
        for name, array in arrays.items():
            archive.writestr(f"{prefix}data/{name}", array.tobytes())


def opcodes(value):
    """A plain value as a part of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def as_dict(arrays, **windows):
    """A dict of tensors as a part of a pickle."""
    items = b"".join(opcodes(name) + tensor(name, array, **windows) + b"s" for name, array in arrays.items())
    return b"}" + items


def tensor(key, array, offset=0, shape=None, strides=None):
    """A tensor as a part of a pickle: a window on the storage `key`, which holds `array`."""
    storages = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int32": "Int"}
    storage = storages.get(array.dtype.name, "Bool") + "Storage"
    identity = b"(" + opcodes("storage") + f"ctorch\n{storage}\n".encode() + opcodes(key) + opcodes("cpu")
    identity += opcodes(array.size) + b"tQ"
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"".join(
        map(opcodes, (offset, shape, strides, False, collections.OrderedDict()))
    ) + b"tR"  # fmt: skip


KINDS = ("npz", "npz compressed", "safetensors", "msgpack", "torch")


def same(weights, expected):
    """Asserts names, shapes, types and values, and that each read hands over an array of its own."""
    assert set(weights.leaves) == set(expected)
    for name, leaf in weights.leaves.items():
        array = leaf.read()
        assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype) == (expected[name].shape, expected[name].dtype)
        assert array.flags.writeable
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert leaf.read() is not array


def read_all(path):
    """Every array of a file."""
    with open_weights(path) as weights:
        return {name: leaf.read() for name, leaf in weights.leaves.items()}
