"""What holds weights, found by looking: files, folders of Hugging Face, Flax and our own runs, mappings.

A container is known by its first bytes, never by its name. How each is read, leaf by leaf, is in `containers` and
`torch_files`.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from vivit_jax.convert.containers import arrays, torch
from vivit_jax.convert.containers.arrays import FileError, Leaf, Weights, reading

__all__ = ["FileError", "Leaf", "Weights", "open_weights"]

# Names of a Hugging Face folder, first come, first served.
_HUGGING_FACE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HEAD = 512  # bytes that tell a container
_MAX_HEADER = 100_000_000  # bytes, the safetensors library's own limit

_Opener = Callable[[epath.Path], Weights]


def open_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> Weights:
    """Opens what holds weights, without reading them.

    Args:
      source: a mapping of arrays, flat or nested; a file: .npz, safetensors (or the .index.json of its shards), of
        PyTorch, of Flax (msgpack); or a folder: of Hugging Face, a run's workdir or one step of it (the best step
        where there are several), one with Flax's `checkpoint_N` (the highest N), or one with a single weights file.
        Paths may be remote (gs://).

    Returns:
      What is in it, a context manager: `with open_weights(path) as weights: weights.leaves[name].read()`.

    Raises:
      FileNotFoundError: there is nothing at the path.
      FileError: it cannot be read, is not weights, or could be several; says which, and what to do.
    """
    weights = arrays.open_mapping(source) if isinstance(source, Mapping) else _open(epath.Path(source))
    if not weights.leaves:
        weights.close()
        raise FileError(f"{weights.where} holds no arrays at all; is it the right one?")
    return weights


def _open(path: epath.Path) -> Weights:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: there is no such file or folder")
    weights = _open_file(path)
    config = _json_beside(path.parent, "config.json", strict=False)
    if isinstance(config, dict) and "model_type" in config:
        _add_configs(weights, path.parent, strict=False)
    return weights


def _open_file(path: epath.Path) -> Weights:
    return _opener(path)(path)


def _opener(path: epath.Path) -> _Opener:
    """The function that reads a file, by the file's first bytes.

    Raises:
      FileError: none does; says what the file seems to be.
    """
    with reading(str(path)), path.open("rb") as file:
        head = file.read(_HEAD)
    if head[:4] == b"PK\x03\x04":
        return _zip_opener(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return arrays.open_safetensors
    if head[:1] == b"\x80" and torch.MAGIC_BYTES in head[:32]:
        return torch.open_legacy
    if re.match(rb"\s*\{.*\"(weight_map|metadata)\"", head, re.DOTALL):
        return _open_index
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return arrays.open_msgpack
    raise FileError(f"{path} {_looks_like(head)}")


def _zip_opener(path: epath.Path) -> _Opener:
    with reading(str(path)), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(torch.PICKLE.fullmatch(name) for name in names):
        return torch.open_zip
    if any(name.endswith(".npy") for name in names):
        return arrays.open_npz
    raise FileError(f"{path} is a zip of neither NumPy nor PyTorch ({', '.join(names[:3])}, ...); unpack it first")


def _looks_like(head: bytes) -> str:
    """What the first bytes of a file that holds no weights tell about it, and the way out."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: its download or its writing never finished; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the weights: run `git lfs pull` in its repository, or download the file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: the download failed (a login, a licence, a wrong address); fetch it again"
    if text.startswith((b"{", b"[")):
        return "is JSON text, not weights; give the file or the folder of the weights"
    if not head.strip(b"\0"):
        return "begins with zeros only: its download or its writing never finished; fetch it again"
    for magic, kind in {
        b"\x1f\x8b": "compressed with gzip: unpack it first",
        b"\x93NUMPY": "a single array without a name (.npy): save an .npz with names",
        b"\x89HDF": "HDF5 (Keras): load it there and save an .npz",
    }.items():
        if head.startswith(magic):
            return f"is {kind}"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "is a pickle of Python objects, or what is left of a PyTorch file; nothing of it was executed. If you "
            "trust it, load it in Python and save its arrays as .npz or safetensors"
        )
    return (
        f"is of no known kind (it begins with {head[:8]!r}); known are .npz, safetensors, PyTorch's .pth, .pt and "
        ".bin, Flax's msgpack"
    )


def _open_index(path: epath.Path) -> Weights:
    """The shards that an index of Hugging Face names, as one.

    Raises:
      FileError: the index is not sound, shards are missing (all of them are named), or do not hold what it says.
    """
    with reading(str(path)):
        index = json.loads(path.read_text())
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise FileError(f"{path} is JSON without a weight_map: no index of shards")
    shards = sorted(set(places.values()))
    if missing := [name for name in shards if not (path.parent / name).is_file()]:
        raise FileError(
            f"{path} names {len(shards)} shards, and of these are missing: {', '.join(missing)}; fetch them into "
            f"{path.parent}"
        )
    weights = Weights({}, "", str(path))
    try:
        for shard in shards:
            opened = _open_file(path.parent / shard)
            weights.closers.append(opened.close)
            weights.container = opened.container
            for kind, fact in opened.facts.items():
                weights.facts[kind] = weights.facts.get(kind, {}) | fact if isinstance(fact, dict) else fact
            for name, leaf in opened.leaves.items():
                arrays.add(weights.leaves, name, leaf, weights.where)
        if absent := [name for name in places if name not in weights.leaves]:
            raise FileError(f"{path}: its shards lack {len(absent)} arrays that it names ({', '.join(absent[:4])})")
    except BaseException:
        weights.close()
        raise
    return weights


def _open_folder(path: epath.Path) -> Weights:
    children = sorted(path.iterdir(), key=lambda child: child.name)
    names = {child.name for child in children}
    for name in _HUGGING_FACE:
        if name in names:
            return _add_configs(_open_file(path / name), path)
    if (path.name.isdigit() or any(name.isdigit() or name == "checkpoints" for name in names)) and (
        weights := _open_run(path)
    ):
        return weights
    steps = {int(match[1]): name for name in names if (match := re.fullmatch(r"checkpoint_(\d+)", name))}
    if steps:
        latest = path / steps[max(steps)]
        if latest.is_dir():
            raise FileError(
                f"{latest} is a folder, as Orbax of another program writes it; restore it there and save its "
                "parameters as .npz"
            )
        return _open_file(latest)
    found: list[epath.Path] = []
    reasons: list[str] = []
    for child in children:
        if child.name.startswith(".") or child.is_dir() or child.suffix == ".json":
            continue
        try:
            _opener(child)
            found.append(child)
        except FileError as error:
            reasons.append(str(error))
    if len(found) == 1:
        return _add_configs(_open_file(found[0]), path)
    if found:
        raise FileError(f"{path} holds several files of weights; give one: {', '.join(c.name for c in found)}")
    inside = "\n  ".join(reasons[:4]) or ", ".join(sorted(names)[:8]) or "nothing at all"
    raise FileError(f"{path} is a folder without weights; it holds:\n  {inside}")


def _open_run(path: epath.Path) -> Weights | None:
    """The parameters in a checkpoint of our own training, without the optimizer's state; None where there is none.

    Args:
      path: a workdir, its folder of steps, or one step. Of several steps the best is taken, by the metric of the run.

    Raises:
      FileError: damaged.
    """
    import orbax.checkpoint as ocp  # here: it takes a second, and most weights need none of it

    from vivit_jax import checkpoint as checkpointing

    try:
        root, step = checkpointing.locate(path)
    except checkpointing.CheckpointError:
        return None
    with reading(str(path)), checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        if step is None:
            if not checkpoints.steps():
                return None
            run = (checkpoints.recorded() or {}).get("config", {})
            checkpoints.best_metric = run.get("checkpoint", {}).get("best_metric", checkpoints.best_metric)
            step = checkpoints.best()
        meta = checkpoints.meta(step)
    state, where = root / str(step) / checkpointing.STATE, str(root / str(step))
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    weights = Weights({}, "orbax", where, {"meta": meta}, [checkpointer.close])

    def leaf(name: str, stored: Any) -> Leaf:
        def read() -> np.ndarray:
            wanted: Any = jax.ShapeDtypeStruct(stored.shape, stored.dtype)
            options: Any = ocp.RestoreArgs(restore_type=np.ndarray)
            for key in reversed(name.split("/")):
                wanted, options = {key: wanted}, {key: options}
            args = ocp.args.PyTreeRestore(wanted, restore_args=options, partial_restore=True)
            with reading(f"{name!r} in {where}"):
                tree = checkpointer.restore(state, args=args)
                if checkpointing.checksums(tree)[name] != meta["checksums"].get(name):
                    raise ValueError("its checksum is not the one that was saved")
            return np.require(dict(arrays.flatten(tree))[name], requirements="W")

        return Leaf(tuple(stored.shape), np.dtype(stored.dtype), read)

    with reading(where):
        for name, stored in arrays.flatten(checkpointer.metadata(state).item_metadata.tree["params"]):
            weights.leaves[name] = leaf(f"params/{name}", stored)
    return weights


def _add_configs(weights: Weights, folder: epath.Path, strict: bool = True) -> Weights:
    """Puts the JSON files of a Hugging Face folder into the facts."""
    try:
        for kind, name in {"config": "config.json", "preprocessor": "preprocessor_config.json"}.items():
            if (parsed := _json_beside(folder, name, strict)) is not None:
                weights.facts[kind] = parsed
    except BaseException:
        weights.close()
        raise
    return weights


def _json_beside(folder: epath.Path, name: str, strict: bool) -> Any:
    """A JSON file of a folder; None where there is none, or, unless `strict`, none that parses."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        with reading(str(path)):
            return json.loads(path.read_text())
    except FileError:
        if strict:
            raise
        return None
