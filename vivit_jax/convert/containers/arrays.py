"""The containers that arrays come in: .npz, safetensors, Flax's msgpack, mappings; each read leaf by leaf.

Opening reads names, shapes and places only; an array is read when it is asked for, so that converting a file needs
little more memory than its largest array. PyTorch's containers are in `vivit_jax.convert.torch_files`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import ml_dtypes
import msgpack
import numpy as np
import safetensors
from etils import epath

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_CHUNK = 1 << 22  # bytes read at a time


class FileError(ValueError):
    """A file of weights that cannot be read: which, what is wrong with it, and the way out."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a file, not read yet.

    Attributes:
      shape: its shape.
      dtype: as stored; bfloat16 is `ml_dtypes.bfloat16`.
      read: reads just this array, as often as it is called; the caller owns the result. Raises FileError where the
        file is cut off or damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclasses.dataclass
class Weights:
    """What a file, a folder or a mapping holds. A context manager: leaves are read inside it.

    Attributes:
      leaves: name -> leaf; nested trees are flattened with '/', names of PyTorch and safetensors are as they are.
      container: 'npz', 'msgpack', 'safetensors', 'torch', 'orbax' or 'mapping'.
      where: for messages.
      facts: what else was found, by kind: 'config', 'preprocessor', 'meta', 'metadata', 'unwrapped', 'other'.
    """

    leaves: dict[str, Leaf]
    container: str
    where: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    closers: list[Callable[[], None]] = dataclasses.field(default_factory=list, repr=False)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files; may be called again."""
        while self.closers:
            self.closers.pop()()


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """What goes wrong inside becomes a FileError that names `what`.

    Libraries raise a dozen kinds for bytes that are cut off or garbage: whatever the bytes happen to ask for.
    """
    try:
        yield
    except (FileError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise FileError(f"{what} is cut off or damaged ({detail}); fetch or write it again") from error


def read_span(path: epath.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of `shape` from the bytes of a file that begin at `offset`; only one copy is ever in memory.

    Raises:
      FileError: the file ends before the array does.
    """
    with reading(str(path)), path.open("rb") as file:
        file.seek(offset)
        return read_stream(file, dtype, shape, str(path))


def read_stream(file: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array of `shape` from where an open file stands.

    Raises:
      FileError: the file ends before the array does; `where` names it.
    """
    array = np.empty(shape, dtype)
    if not array.nbytes:
        return array
    raw = array.reshape(-1).view(np.uint8)
    done = 0
    while done < raw.size:
        piece = file.read(min(_CHUNK, raw.size - done))
        if not piece:
            raise FileError(f"{where} is cut off: {raw.size - done} bytes of an array are missing; fetch it again")
        raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return array


def flatten(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, leaf) of nested mappings, lists and tuples, joined with '/'; items of a list are '0', '1', ..."""
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, value in tree.items():
        yield from flatten(value, f"{name}/{key}" if name else str(key))


def add(leaves: dict[str, Any], name: str, leaf: Any, where: str) -> None:
    """Puts a leaf under its name.

    Raises:
      FileError: the name is taken.
    """
    if name in leaves:
        raise FileError(f"{where} has two arrays named {name!r}; rename one of them")
    leaves[name] = leaf


def open_mapping(tree: Mapping[str, Any]) -> Weights:
    """Arrays in nested or flat dicts; each read is a copy.

    Raises:
      FileError: a value that is no array of numbers, or two arrays of one name.
    """
    weights = Weights({}, "mapping", "the mapping")
    for name, value in flatten(tree):
        # JAX's arrays stay where they are until they are read; what else there is NumPy has to look at.
        try:
            array = value if isinstance(getattr(value, "dtype", None), np.dtype) else np.asarray(value)
            if array.dtype.hasobject:
                raise TypeError("Python objects")
        except (TypeError, ValueError) as error:
            raise FileError(
                f"{name!r} in the mapping is a {type(value).__name__} and no array of numbers ({error}); take it out, "
                "or make it an array of NumPy or JAX"
            ) from error
        leaf = Leaf(tuple(array.shape), array.dtype, lambda array=array: np.array(array))
        add(weights.leaves, name, leaf, weights.where)
    return weights


def open_npz(path: epath.Path) -> Weights:
    """The arrays of an .npz, compressed or not.

    Raises:
      FileError: damaged, or with arrays of Python objects.
    """
    weights = Weights({}, "npz", str(path))
    with contextlib.ExitStack() as stack, reading(str(path)):
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(path.open("rb"))))
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                name = info.filename.removesuffix(".npy")
                add(weights.leaves, name, _npz_leaf(archive, info, f"{name!r} in {path}"), weights.where)
            else:
                weights.facts.setdefault("other", {})[info.filename] = f"{info.file_size} bytes, not an array"
        weights.closers.append(stack.pop_all().close)
    return weights


def _npz_leaf(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Leaf:
    with reading(where), archive.open(info) as member:
        shape, fortran, dtype = _npy_header(member)
        start = member.tell()
    if dtype.hasobject:
        raise FileError(
            f"{where} is an array of Python objects: reading it would be unpickling it, and that can run any code. "
            "Save it as plain arrays"
        )
    if start + (size := math.prod(shape) * dtype.itemsize) != info.file_size:
        raise FileError(f"{where} has {info.file_size - start} bytes, {shape} of {dtype} are {size}; write it again")
    # NumPy writes bfloat16, which it does not know, as nameless elements of two bytes.
    stored = BFLOAT16 if dtype == np.dtype("V2") else dtype

    def read() -> np.ndarray:
        with reading(where), archive.open(info) as member:
            member.read(start)
            array = read_stream(member, stored, shape[::-1] if fortran else shape, where)
            member.read(1)  # reaching the end makes zipfile compare the checksum
        return array.T if fortran else array

    return Leaf(shape, stored, read)


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    return readers[version](member)


_SAFETENSORS = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": BFLOAT16, "F32": np.float32,
    "F64": np.float64, "C64": np.complex64,
}  # fmt: skip


def open_safetensors(path: epath.Path) -> Weights:
    """The arrays of a safetensors file.

    The library checks a local file. The arrays are read here: its own reader maps the whole file into memory, and
    knows bfloat16 in NumPy only since late versions.

    Raises:
      FileError: damaged, or with a type such as float8, in which no parameters are kept.
    """
    with reading(str(path)), path.open("rb") as file:
        if "://" not in os.fspath(path):
            with safetensors.safe_open(os.fspath(path), framework="numpy"):
                pass
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None)
        weights = Weights({}, "safetensors", str(path), {"metadata": metadata} if metadata else {})
        size = path.stat().length
        for name, entry in header.items():
            if entry["dtype"] not in _SAFETENSORS:
                raise FileError(
                    f"{name!r} in {path} is of type {entry['dtype']}; known are {', '.join(_SAFETENSORS)}. "
                    "Save the weights in float32 or bfloat16"
                )
            dtype, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if end - begin != math.prod(shape) * dtype.itemsize or end > size:
                raise ValueError(f"{name!r}, {shape} of {dtype}, from byte {begin} to {end} of {size}")
            weights.leaves[name] = _leaf_at(path, begin, dtype, shape)
    return weights


def _leaf_at(path: epath.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> Leaf:
    return Leaf(shape, dtype, lambda: read_span(path, offset, dtype, shape))


def open_msgpack(path: epath.Path) -> Weights:
    """The arrays of a msgpack file as Flax writes it (`flax.serialization`, `checkpoint_N`).

    Numbers are arrays without axes; what is neither is in `facts['other']`.

    Raises:
      FileError: damaged, or not Flax's.
    """
    weights = Weights({}, "msgpack", str(path))
    with reading(str(path)), path.open("rb") as file:
        walker = _Msgpack(path, file)
        tree, end = walker.value(0)
    if end != walker.size:
        raise FileError(f"{path} has {walker.size - end} bytes after its msgpack data; not a checkpoint of Flax")
    for name, value in flatten(tree):
        if isinstance(value, bool | int | float | complex):
            value = Leaf((), np.asarray(value).dtype, lambda value=value: np.asarray(value))
        if isinstance(value, Leaf):
            add(weights.leaves, name, value, weights.where)
        else:
            weights.facts.setdefault("other", {})[name] = value
    return weights


class _Msgpack:
    """Walks a msgpack file and steps over the arrays. The library unpacks all but the heads of Flax's extension."""

    _FIXED: ClassVar = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # the extension's first byte -> its length
    _SIZED: ClassVar = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}  # -> how its length is written
    _BINARY: ClassVar = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}

    def __init__(self, path: epath.Path, file: Any):
        self.path, self.file, self.size = path, file, path.stat().length

    def _at(self, place: int) -> msgpack.Unpacker:
        self.file.seek(place)
        return msgpack.Unpacker(self.file, raw=False, strict_map_key=False, max_buffer_size=0)

    def _bytes(self, place: int, count: int) -> bytes:
        self.file.seek(place)
        if len(data := self.file.read(count)) < count:
            raise msgpack.OutOfData
        return data

    def value(self, place: int) -> tuple[Any, int]:
        """The value that begins at `place`, arrays as leaves, and where it ends."""
        tag = self._bytes(place, 1)[0]
        if 0x80 <= tag <= 0x8F or tag in (0xDE, 0xDF):
            return self._map(place)
        if 0x90 <= tag <= 0x9F or tag in (0xDC, 0xDD):
            return self._array(place)
        if tag in self._FIXED or tag in self._SIZED:
            return self._extension(place, tag)
        unpacker = self._at(place)
        return unpacker.unpack(), place + unpacker.tell()

    def _map(self, place: int) -> tuple[Any, int]:
        unpacker, result = self._at(place), {}
        count = unpacker.read_map_header()
        place += unpacker.tell()
        for _ in range(count):
            unpacker = self._at(place)
            key = unpacker.unpack()
            result[key], place = self.value(place + unpacker.tell())
        return (self._joined(result) if "__msgpack_chunked_array__" in result else result), place

    def _array(self, place: int) -> tuple[list[Any], int]:
        unpacker, result = self._at(place), []
        count = unpacker.read_array_header()
        place += unpacker.tell()
        for _ in range(count):
            item, place = self.value(place)
            result.append(item)
        return result, place

    def _extension(self, place: int, tag: int) -> tuple[Any, int]:
        """Flax's arrays (1), complex numbers (2) and NumPy scalars (3): (shape, name of dtype, bytes) in msgpack."""
        start, length = place + 1, self._FIXED.get(tag)
        if length is None:
            (length,) = struct.unpack(form := self._SIZED[tag], self._bytes(start, struct.calcsize(self._SIZED[tag])))
            start += struct.calcsize(form)
        code, start = self._bytes(start, 1)[0], start + 1
        if start + length > self.size:
            raise msgpack.OutOfData
        unpacker = self._at(start)
        if code == 2:
            return complex(*unpacker.unpack()), start + length
        if code not in (1, 3) or unpacker.read_array_header() != 3:
            raise ValueError(f"extension {code} at byte {place} is none of Flax's")
        shape, name = tuple(unpacker.unpack()), unpacker.unpack()
        data = start + unpacker.tell()
        form = self._BINARY[self._bytes(data, 1)[0]]
        (count,) = struct.unpack(form, self._bytes(data + 1, struct.calcsize(form)))
        data += 1 + struct.calcsize(form)
        dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
        if (
            dtype.hasobject
            or min(shape, default=0) < 0
            or data + count != start + length
            or count != math.prod(shape) * dtype.itemsize
        ):
            raise ValueError(f"the array at byte {place}, {shape} of {dtype}, does not fit into its {count} bytes")
        return _leaf_at(self.path, data, dtype, shape), start + length

    @staticmethod
    def _joined(tree: Mapping[str, Any]) -> Leaf:
        """An array that Flax cut into pieces because msgpack cannot hold it whole."""
        shape = tuple(tree["shape"][str(axis)] for axis in range(len(tree["shape"])))
        chunks = [tree["chunks"][str(number)] for number in range(len(tree["chunks"]))]
        dtype = chunks[0].dtype
        if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
            raise ValueError(f"the pieces of an array of shape {shape} do not add up")

        def read() -> np.ndarray:
            array, done = np.empty(math.prod(shape), dtype), 0
            for chunk in chunks:
                size = math.prod(chunk.shape)
                array[done : done + size] = chunk.read()
                done += size
            return array.reshape(shape)

        return Leaf(shape, dtype, read)
