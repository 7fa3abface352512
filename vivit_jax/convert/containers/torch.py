"""PyTorch's own files (.pth, .pt, .bin) without PyTorch, and without running what is in them.

Such a file is a pickle, and a pickle can name any function of any module to be called. Here nothing is looked up: a
short list of names stands for functions of this module, every other one ends the reading. The formats are described in
torch/serialization.py (`_save`, `_legacy_save`) and torch/_utils.py (`_rebuild_tensor_v2`) of PyTorch.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pickle
import pickletools
import re
import struct
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from vivit_jax.convert.containers.arrays import (
    BFLOAT16,
    FileError,
    Leaf,
    Weights,
    add,
    flatten,
    read_span,
    read_stream,
    reading,
)

MAGIC = 0x1950A86A20F9469CFC6C  # pickled at the head of the format before PyTorch 1.6
MAGIC_BYTES = pickle.dumps(MAGIC, protocol=2)[2:-1]
PICKLE = re.compile(r"([^/]+/)?data\.pkl")  # the member of the format since
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": BFLOAT16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8,
    "ByteStorage": np.uint8, "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128, "UntypedStorage": np.uint8,
}  # fmt: skip
_DTYPES = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": BFLOAT16, "int64": np.int64,
    "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint64": np.uint64, "uint32": np.uint32,
    "uint16": np.uint16, "uint8": np.uint8, "bool": np.bool_, "complex64": np.complex64, "complex128": np.complex128,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The numbers that one or several tensors look at."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A window on a storage; offset and strides in elements of `dtype`."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def span(self) -> int:
        """Elements from the first one to the last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


# storage, first byte, bytes -> these bytes
_Fetch = Callable[[_Storage, int, int], np.ndarray]


def open_zip(path: epath.Path) -> Weights:
    """The tensors of a file that `torch.save` wrote (PyTorch 1.6 and later).

    Raises:
      FileError: damaged, or a pickle that asks for more than tensors.
    """
    weights = Weights({}, "torch", str(path))
    with contextlib.ExitStack() as stack, reading(str(path)):
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(path.open("rb"))))
        members = {info.filename: info for info in archive.infolist()}
        for info in members.values():
            info.CRC = info.CRC or None  # PyTorch writes 0 where it was told not to compute it; None: not compared
        (root,) = (name.removesuffix("data.pkl") for name in members if PICKLE.fullmatch(name))
        order = archive.read(members[f"{root}byteorder"]) if f"{root}byteorder" in members else b"little"
        with archive.open(f"{root}data.pkl") as pickled:
            tree = _Unpickler(pickled, str(path)).load()

        def size(storage: _Storage) -> int:
            info = members.get(f"{root}data/{storage.key}")
            return -1 if info is None else info.file_size

        def fetch(storage: _Storage, start: int, count: int) -> np.ndarray:
            with reading(str(path)), archive.open(f"{root}data/{storage.key}") as member:
                member.seek(start)
                data = read_stream(member, np.dtype(np.uint8), (count,), str(path))
                if start + count == size(storage):
                    member.read(1)  # reaching the end makes zipfile compare the checksum
                return data

        _fill(weights, tree, fetch, size, swapped=order.strip() == b"big")
        weights.closers.append(stack.pop_all().close)
    return weights


def open_legacy(path: epath.Path) -> Weights:
    """The tensors of a file in PyTorch's format before 1.6: pickles, and behind them the storages one by one.

    Raises:
      FileError: damaged, or a pickle that asks for more than tensors.
    """
    weights = Weights({}, "torch", str(path))
    places: dict[str, tuple[int, int]] = {}  # storage -> first byte, bytes

    def fetch(storage: _Storage, start: int, count: int) -> np.ndarray:
        return read_span(path, places[storage.key][0] + start, np.dtype(np.uint8), (count,))

    def size(storage: _Storage) -> int:
        return places.get(storage.key, (0, -1))[1]

    with reading(str(path)), path.open("rb") as file:
        _, _, system = (_Unpickler(file, str(path)).load() for _ in range(3))  # magic number, version, machine
        unpickler = _Unpickler(file, str(path))
        tree = unpickler.load()
        keys = _Unpickler(file, str(path)).load()
        swapped, place = not system["little_endian"], file.tell()
        for key in keys:
            file.seek(place)
            (count,) = struct.unpack(">q" if swapped else "<q", file.read(8))
            places[key] = place + 8, count * unpickler.storages[key].dtype.itemsize
            place += 8 + places[key][1]
        if place != (end := path.stat().length):
            raise ValueError(f"{end} bytes where the tensors end at {place}")
        _fill(weights, tree, fetch, size, swapped)
    return weights


def _fill(weights: Weights, tree: Any, fetch: _Fetch, size: Callable[[_Storage], int], swapped: bool) -> None:
    """Puts the tensors of what was pickled into the weights, the rest into their facts."""
    if not isinstance(tree, Mapping):
        raise FileError(f"{weights.where} holds a {type(tree).__name__}, not a dict of tensors; save the state_dict()")
    other = {}
    while name := next((name for name in WRAPPERS if _has_tensors(tree.get(name))), None):
        other |= {key: _described(value) for key, value in tree.items() if key != name}
        weights.facts["unwrapped"] = [*weights.facts.get("unwrapped", []), name]
        tree = tree[name]
    for name, value in flatten(tree):
        if isinstance(value, _Tensor):
            add(weights.leaves, name, _leaf(value, fetch, size, swapped, f"{name!r} in {weights.where}"), weights.where)
        else:
            other[name] = _described(value)
    if other:
        weights.facts["other"] = other


def _has_tensors(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(isinstance(value, _Tensor) for _, value in flatten(tree))


def _described(value: Any) -> Any:
    """What is beside the weights; of tensors only how many there are."""
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    if count := sum(isinstance(leaf, _Tensor) for _, leaf in flatten(value)):
        return f"{count} tensors, not read"
    return value


def _leaf(tensor: _Tensor, fetch: _Fetch, size: Callable[[_Storage], int], swapped: bool, where: str) -> Leaf:
    if len(tensor.shape) != len(tensor.strides) or min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0:
        raise FileError(f"{where} has shape {tensor.shape}, strides {tensor.strides}, offset {tensor.offset}; damaged")
    width, span = tensor.dtype.itemsize, tensor.span()
    stored, needed = size(tensor.storage), (tensor.offset + span) * width
    if stored < needed:
        raise FileError(f"{where} needs {needed} bytes of its storage, the file has {max(stored, 0)}; fetch it again")

    def read() -> np.ndarray:
        flat = fetch(tensor.storage, tensor.offset * width, span * width)
        if swapped:
            part = width // 2 if tensor.dtype.kind == "c" else width
            flat = flat.view(f"u{part}").byteswap(inplace=True)
        flat = flat.view(tensor.dtype)
        dense = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
        if tensor.strides == dense or flat.size == 0:
            return flat.reshape(tensor.shape)
        strides = tuple(stride * width for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()

    return Leaf(tensor.shape, tensor.dtype, read)


class _NumpyType:
    """Stands for a `numpy.dtype` of numbers."""

    def __init__(self, name: str):
        if not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"numpy.dtype({name!r}) is no type of numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {">": ">", "<": "<"}.get(state[1], "=")


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain values.

    What stands for an allowed name is a bound method, a string, or a class of C: nothing through which a pickle could
    reach further, and nothing that it could alter (its BUILD sets attributes) for those that are read after it.
    """

    def __init__(self, file: Any, where: str):
        super().__init__(file, encoding="utf-8")  # as PyTorch does, for files of Python 2
        self.where, self._file = where, file
        self.storages: dict[str, _Storage] = {}

    def load(self) -> Any:
        """What was pickled.

        Raises:
          FileError: it asks for what is not on the list, or for more memory than there is.
        """
        try:
            start = self._file.tell()
            for opcode, argument, place in pickletools.genops(self._file):
                # The library would make room for all numbers up to this one, and a damaged one can be 2^32.
                if opcode.name == "LONG_BINPUT" and argument > place:
                    raise ValueError(f"its pickle numbers an object {argument} at byte {place}")
            self._file.seek(start)
            return super().load()
        except MemoryError as error:
            raise FileError(f"{self.where} is damaged: its pickle asks for more memory than there is") from error

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name.

        Raises:
          FileError: the name is not on the list.
        """
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "complex", "bytearray"):
            return {"set": set, "frozenset": frozenset, "complex": complex, "bytearray": bytearray}[name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return name
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch" and (name.endswith("Storage") or name.startswith(("float", "complex", "q"))):
            raise FileError(
                f"{self.where} has tensors of type torch.{name}; known are {', '.join(_DTYPES)}. Save the weights in "
                "float32 or bfloat16"
            )
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): self._first,
            ("torch._utils", "_rebuild_parameter_with_state"): self._first,
            ("torch._tensor", "_rebuild_from_type_v2"): self._of_type,
            ("torch", "Size"): self._size,
            ("torch", "device"): self._device,
            ("torch", "Tensor"): "Tensor",
            ("torch.nn.parameter", "Parameter"): "Parameter",
            ("numpy", "dtype"): self._numpy_type,
            ("numpy.core.multiarray", "scalar"): self._numpy_scalar,
            ("numpy._core.multiarray", "scalar"): self._numpy_scalar,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        raise FileError(
            f"{self.where} asks for {module}.{name}, which is neither a tensor nor a plain value; nothing of it was "
            "executed. If you trust the file, load it in PyTorch and save its state_dict() as safetensors"
        )

    def persistent_load(self, identity: Any) -> _Storage:
        """A storage from ('storage', its type, key, device, elements, and in old files the window of another one)."""
        kind, storage_type, key, _, count, *window = identity
        if kind != "storage" or any(window):
            raise ValueError(f"a storage of an unknown kind: {identity}")
        return self.storages.setdefault(str(key), _Storage(str(key), np.dtype(_STORAGES[storage_type]), int(count)))

    def _tensor(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, storage.dtype, offset, tuple(shape), tuple(strides))

    def _tensor_of_dtype(
        self, storage: _Storage, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: str, *_: Any
    ) -> _Tensor:
        return _Tensor(storage, np.dtype(_DTYPES[dtype]), offset, tuple(shape), tuple(strides))

    def _first(self, data: Any, *_: Any) -> Any:
        return data

    def _of_type(self, rebuild: Callable[..., Any], _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
        return rebuild(*arguments)

    def _size(self, sizes: Any = ()) -> tuple[Any, ...]:
        return tuple(sizes)

    def _device(self, *parts: Any) -> str:
        return ":".join(map(str, parts))

    def _numpy_type(self, name: str, *_: Any) -> _NumpyType:
        return _NumpyType(name)

    def _numpy_scalar(self, kind: _NumpyType, data: bytes) -> Any:
        return np.frombuffer(data, np.dtype(kind.order + kind.name))[0].item()

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise ValueError(f"bytes written as {encoding}")
        return text.encode("latin1")
