"""Arrays of .npz, safetensors and Flax msgpack files and of mappings.

Opening reads names, shapes and types; an array is read on demand. Flax reads a msgpack file whole.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import safetensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class FileError(ValueError):
    """A weight file that cannot be read; the message names the file, the fault and the way out."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a container, with shape and dtype as stored."""

    shape: tuple[int, ...]
    dtype: np.dtype  # `ml_dtypes.bfloat16` for bfloat16
    read: Callable[[], np.ndarray]  # the array may be a view of the container: do not modify it


Leaves = dict[str, Leaf]


@dataclasses.dataclass
class Container(contextlib.AbstractContextManager):
    """An open file, folder or mapping of arrays; a context manager inside which leaves are read."""

    leaves: Leaves  # by name; nested trees are flattened with '/', names of PyTorch and safetensors are kept
    kind: str  # 'npz', 'msgpack', 'safetensors', 'torch', 'orbax' or 'mapping'
    where: str  # the path, for messages
    # 'config' and 'preprocessor': JSON files of Hugging Face; 'checkpoint': metadata of a checkpoint of ours.
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    resources: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack, repr=False)

    def __exit__(self, *_: Any) -> None:
        self.resources.close()


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns any exception of a library that parses damaged bytes into a FileError that names `where`."""
    try:
        yield
    except (FileError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise FileError(f"{where} is cut off or damaged ({detail}); download or write it again") from error


def flatten(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (name, leaf) of nested mappings, lists and tuples, joined with '/'; items of a list are '0', '1', ..."""
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, value in tree.items():
        yield from flatten(value, f"{name}/{key}" if name else str(key))


def add(leaves: Leaves, name: str, leaf: Leaf, where: str) -> None:
    """Adds a leaf; raises FileError where its name is taken."""
    if name in leaves:
        raise FileError(f"{where} has two arrays named {name!r}; rename one of them")
    leaves[name] = leaf


def open_mapping(tree: Mapping[str, Any]) -> Container:
    """Opens nested or flat dicts of arrays."""
    leaves: Leaves = {}
    for name, value in flatten(tree):
        # JAX arrays stay on their device until they are read.
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        if array.dtype.hasobject:
            raise FileError(f"{name!r} in the mapping is a {type(value).__name__} and no array of numbers; remove it")
        add(leaves, name, Leaf(array.shape, array.dtype, lambda array=array: np.asarray(array)), "the mapping")
    return Container(leaves, "mapping", "the mapping")


# The readers of files take the path of a local file, the path for messages, and the stack that closes what they open.


def read_npz(path: Path, where: str, resources: contextlib.ExitStack) -> Leaves:
    """Opens the arrays of an .npz, compressed or not."""
    archive = resources.enter_context(np.load(path, allow_pickle=False))
    return {name: _npz_leaf(archive, name, where) for name in archive.files}


def _npz_leaf(archive: Any, name: str, where: str) -> Leaf:
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with reading(f"{name!r} in {where}"), archive.zip.open(f"{name}.npy") as member:
        shape, _, stored = headers[np.lib.format.read_magic(member)](member)
    if stored.hasobject:
        raise FileError(f"{name!r} in {where} is an array of Python objects, a pickle; save plain arrays")
    # NumPy has no bfloat16 of its own and writes it as untyped elements of two bytes.
    dtype = BFLOAT16 if stored == np.dtype("V2") else stored

    def read() -> np.ndarray:
        with reading(f"{name!r} in {where}"):
            return archive[name].view(dtype)

    return Leaf(shape, dtype, read)


_SAFETENSORS = {"BOOL": "bool", "BF16": BFLOAT16, "C64": "complex64"}
_SAFETENSORS |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_SAFETENSORS |= {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}


def read_safetensors(path: Path, where: str, resources: contextlib.ExitStack) -> Leaves:
    """Opens the arrays of a safetensors file."""
    file = resources.enter_context(safetensors.safe_open(path, framework="numpy"))
    leaves = {}
    for name in file.keys():  # noqa: SIM118, not a mapping
        header = file.get_slice(name)
        if header.get_dtype() not in _SAFETENSORS:
            supported = f"supported are {', '.join(_SAFETENSORS)}. Save the weights in float32 or bfloat16"
            raise FileError(f"{name!r} in {where} is of type {header.get_dtype()}; {supported}")

        def read(name: str = name) -> np.ndarray:
            with reading(f"{name!r} in {where}"):
                return file.get_tensor(name)

        leaves[name] = Leaf(tuple(header.get_shape()), np.dtype(_SAFETENSORS[header.get_dtype()]), read)
    return leaves


def read_msgpack(path: Path, where: str, resources: contextlib.ExitStack) -> Leaves:
    """Reads a file of `flax.serialization`; Python numbers become arrays without axes, None and text are left out."""
    leaves: Leaves = {}
    for name, value in flatten(flax.serialization.msgpack_restore(path.read_bytes())):
        if isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
            array = np.asarray(value)
            add(leaves, name, Leaf(array.shape, array.dtype, lambda array=array: array), where)
    return leaves
