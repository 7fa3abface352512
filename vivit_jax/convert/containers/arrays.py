"""Arrays of .npz, safetensors, Flax msgpack and PyTorch files and of mappings.

Opening reads names, shapes and types; an array is read on demand. Flax reads a msgpack file whole. PyTorch reads its
files (.pth, .pt, .bin) without running code that their pickle may hold.
"""

import argparse
import contextlib
import dataclasses
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import safetensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:-1]  # near the start of files before PyTorch 1.6
PICKLE_MEMBER = re.compile(r"([^/]+/)?data\.pkl")  # in the zip archives since
# Keys under which training programs keep the state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


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
    # Not mapped: pages that were read would count as memory of the process.
    file = resources.enter_context(safetensors.safe_open(path, framework="numpy", backend="pread"))
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


def read_torch(path: Path, where: str, resources: contextlib.ExitStack) -> Leaves:
    """Opens the tensors of a state dict or of one in a training checkpoint (`_WRAPPERS`); other values are left out."""
    tree = _load(path, where)
    if not isinstance(tree, Mapping):
        raise FileError(f"{where} holds a {type(tree).__name__}, not a dict of tensors; save the state_dict()")
    while wrapper := next((key for key in _WRAPPERS if _has_tensors(tree.get(key))), None):
        tree = tree[wrapper]
    leaves: Leaves = {}
    for name, value in flatten(tree):
        if _is_tensor(value):
            add(leaves, name, _leaf(value, f"{name!r} in {where}"), where)
    return leaves


def _load(path: Path, where: str) -> Any:
    """Unpickles with `weights_only`, the arrays memory-mapped."""
    if "tensorflow" in sys.modules:
        # With CUDA, PyTorch imports Triton, which aborts a process that has loaded TensorFlow (torch 2.13).
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    try:
        import torch
    except ImportError as error:
        way_out = "pip install 'vivit_jax[torch]', or save the weights as safetensors"
        raise FileError(f"{where} is a PyTorch file, and PyTorch is not installed: {way_out}") from error
    # Plain values beside the weights: the arguments and metrics of a training program.
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    plain = [argparse.Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
    plain += {type(np.dtype(code)) for code in "?bhilqefd"}
    try:
        with torch.serialization.safe_globals(plain):
            return torch.load(str(path), weights_only=True, mmap=zipfile.is_zipfile(path), map_location="cpu")
    except pickle.UnpicklingError as error:
        name = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
        problem = f"more than tensors and plain values{f' (it asks for {name[1]})' if name else ''}"
        way_out = "If you trust the file, load it in PyTorch and save its state_dict() as safetensors"
        raise FileError(f"{where} is damaged or holds {problem}; nothing in it was executed. {way_out}") from error


def _leaf(tensor: Any, where: str) -> Leaf:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() < 2):
        raise FileError(f"{where} is of type {name}; save the weights in float32 or bfloat16")

    def read() -> np.ndarray:
        if name == "bfloat16":  # NumPy has none of its own
            import torch

            return tensor.view(torch.int16).numpy(force=True).view(BFLOAT16)
        return tensor.numpy(force=True)

    return Leaf(tuple(tensor.shape), BFLOAT16 if name == "bfloat16" else np.dtype(name), read)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and hasattr(value, "numpy")


def _has_tensors(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(_is_tensor(value) for _, value in flatten(tree))
