"""Opens files, folders and mappings of weights; the kind is auto-detected from the first bytes, never from the name."""

import contextlib
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from vivit_jax.convert.containers import arrays
from vivit_jax.convert.containers.arrays import Container, FileError, Leaf, reading
from vivit_jax.utils import storage

_READERS = {
    "npz": arrays.read_npz,
    "safetensors": arrays.read_safetensors,
    "msgpack": arrays.read_msgpack,
    "torch": arrays.read_torch,
}
# Files of a Hugging Face folder, in order of preference; each may be an index of shards.
_HUGGING_FACE = [name + index for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")]
_STEP = re.compile(r"(?:checkpoint_|ckpt_|step_)?(\d+)")
_HEAD = 512  # bytes from which a kind is detected
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, the library's own limit
_OTHER_FILES = tomllib.loads(Path(__file__).with_name("other_files.toml").read_text(encoding="utf-8"))


def open_container(source: str | os.PathLike[str] | Mapping[str, Any]) -> Container:
    """Opens weights: `with open_container(path) as container: container.leaves[name].read()`.

    `source` is a mapping of arrays, flat or nested; a file: .npz, safetensors, PyTorch, Flax msgpack, or the index.json
    of shards; or a folder: of Hugging Face, a run's workdir or one step of it (of several steps the best), one of Orbax
    by another program, one with Flax's `checkpoint_N` (the highest N), or one with a single weight file. Paths may be
    remote (gs://): a file is then copied to the temporary folder.
    """
    container = arrays.open_mapping(source) if isinstance(source, Mapping) else _open(epath.Path(source))
    if not container.leaves:
        container.resources.close()
        raise FileError(f"{container.where} holds no arrays; check that it is the right one")
    return container


def _open(path: epath.Path) -> Container:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: there is no such file or folder")
    config = path.parent / "config.json"
    is_huggingface = config.is_file() and b'"model_type"' in config.read_bytes()
    return _open_file(path, _read_configs(path.parent) if is_huggingface else {})


def _open_file(path: epath.Path, metadata: dict[str, Any] | None = None) -> Container:
    kind = _detect(path)
    with contextlib.ExitStack() as resources:
        if kind == "index":
            leaves, kind = _read_shards(path, resources)
        else:
            with reading(str(path)):
                leaves = _READERS[kind](resources.enter_context(storage.local(path)), str(path), resources)
        return Container(leaves, kind, str(path), metadata or {}, resources.pop_all())


def _detect(path: epath.Path) -> str:
    """Returns a key of `_READERS` or 'index'; raises FileError with what the file seems to be where it is neither."""
    with reading(str(path)), path.open("rb") as file:
        head = file.read(_HEAD)
    if head[:4] == b"PK\x03\x04":
        with reading(str(path)), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.namelist()
        if any(arrays.PICKLE_MEMBER.fullmatch(name) for name in members):
            return "torch"
        if any(name.endswith(".npy") for name in members):
            return "npz"
        raise FileError(f"{path} is a zip archive of neither NumPy nor PyTorch ({', '.join(members[:3])}, ...)")
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return "safetensors"
    if head[:1] == b"\x80" and arrays.LEGACY_MAGIC in head[:32]:
        return "torch"
    if re.match(rb"\s*\{.*\"(weight_map|metadata)\"", head, re.DOTALL):
        return "index"
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):  # a map with entries
        return "msgpack"
    for pattern, description in _OTHER_FILES.items():
        if re.match(pattern.encode(), head, re.DOTALL | re.IGNORECASE):
            raise FileError(f"{path} {description}")
    supported = ".npz, safetensors, PyTorch's .pth, .pt and .bin, and Flax msgpack"
    raise FileError(f"{path} is of no known kind (it begins with {head[:8]!r}); supported are {supported}")


def _read_shards(path: epath.Path, resources: contextlib.ExitStack) -> tuple[arrays.Leaves, str]:
    """Opens all shards of a Hugging Face index: (their leaves, their kind)."""
    with reading(str(path)):
        index = json.loads(path.read_text())
    if not (shard_of := index.get("weight_map")):
        raise FileError(f"{path} is JSON without a weight_map: no index of shards")
    shards = sorted(set(shard_of.values()))
    if missing := [name for name in shards if not (path.parent / name).is_file()]:
        absent = f"of these are missing: {', '.join(missing)}; download them into {path.parent}"
        raise FileError(f"{path} names {len(shards)} shards, and {absent}")
    leaves: arrays.Leaves = {}
    for shard in shards:
        container = resources.enter_context(_open_file(path.parent / shard))
        for name, leaf in container.leaves.items():
            arrays.add(leaves, name, leaf, str(path))
    if absent := [name for name in shard_of if name not in leaves]:
        raise FileError(f"{path}: its shards lack {len(absent)} arrays that it names ({', '.join(absent[:4])})")
    return leaves, container.kind


def _open_folder(path: epath.Path) -> Container:
    children = sorted(path.iterdir(), key=lambda child: child.name)
    names = {child.name for child in children}
    for name in _HUGGING_FACE:
        if name in names:
            return _open_file(path / name, _read_configs(path))

    # A run of this program: its workdir, its folder of checkpoints or one step.
    is_run = path.name.isdigit() or any(name.isdigit() or name == "checkpoints" for name in names)
    if is_run and (run := _open_run(path)) is not None:
        return run

    # Several steps of Orbax or Flax: the latest; one step of Orbax.
    if steps := {int(match[1]): child for child in children if (match := _STEP.fullmatch(child.name))}:
        return _open(steps[max(steps)])
    if (container := _open_orbax(path)) is not None:
        return container

    # The only file of weights in the folder.
    weights = []
    for child in (child for child in children if not (child.is_dir() or child.suffix == ".json")):
        with contextlib.suppress(FileError):
            _detect(child)
            weights.append(child)
    if len(weights) == 1:
        return _open_file(weights[0], _read_configs(path))
    if weights:
        raise FileError(f"{path} holds several weight files; give one: {', '.join(c.name for c in weights)}")
    raise FileError(f"{path} is a folder without weights; it holds {', '.join(sorted(names)[:8]) or 'nothing at all'}")


def _open_run(path: epath.Path) -> Container | None:
    """Opens the parameters in a checkpoint of our own, of several steps the best by the run's metric; None for none."""
    from vivit_jax import checkpoint as checkpointing

    try:
        root, step = checkpointing.locate(path)
    except checkpointing.CheckpointError:
        return None
    steps = [root / str(step)] if step is not None else [child for child in root.iterdir() if child.name.isdigit()]
    if not any((step / checkpointing.META).is_dir() for step in steps):
        return None  # of another program
    with reading(str(path)), checkpointing.Checkpoints(root, read_only=True) as checkpoints:
        if step is None:
            if not checkpoints.steps():
                return None
            run = (checkpoints.latest_metadata() or {}).get("config", {})
            checkpoints.best_metric = run.get("checkpoint", {}).get("best_metric", checkpoints.best_metric)
            step = checkpoints.best()
        checkpoint_metadata = checkpoints.metadata(step)
    where, checksums, resources = str(root / str(step)), checkpoint_metadata["checksums"], contextlib.ExitStack()
    with reading(where):
        leaves = _read_orbax(root / str(step) / checkpointing.STATE, where, resources, "params", checksums)
    return Container(leaves, "orbax", where, {"checkpoint": checkpoint_metadata}, resources)


def _open_orbax(path: epath.Path) -> Container | None:
    """Opens a tree that Orbax wrote, or a step with several of them; None where there is none."""
    markers = ("_METADATA", "manifest.ocdbt", "checkpoint")
    folders = [path, *(child for child in sorted(path.iterdir()) if child.is_dir())]
    items = [folder for folder in folders if any((folder / marker).is_file() for marker in markers)]
    items = [path] if path in items else items
    leaves, resources = {}, contextlib.ExitStack()
    for item in items:
        with reading(str(item)):
            of_item = _read_orbax(item, str(path), resources)
        prefix = f"{item.name}/" if len(items) > 1 else ""
        leaves |= {prefix + name: leaf for name, leaf in of_item.items()}
    return Container(leaves, "orbax", str(path), {}, resources) if items else None


def _read_orbax(
    folder: epath.Path, where: str, resources: contextlib.ExitStack, part: str = "", checksums: dict | None = None
) -> arrays.Leaves:
    """Lists the arrays of an Orbax tree, or under its key `part`; one is read at a time, and its checksum compared."""
    import orbax.checkpoint as ocp  # here: its import takes a second, and other formats do not need it

    from vivit_jax import checkpoint as checkpointing

    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    resources.callback(checkpointer.close)
    tree = checkpointer.metadata(folder).item_metadata.tree

    def leaf(name: str, stored: Any) -> Leaf:
        def read() -> np.ndarray:
            target = {name: jax.ShapeDtypeStruct(stored.shape, stored.dtype)}
            options = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
            target, options = (flax.traverse_util.unflatten_dict(tree, sep="/") for tree in (target, options))
            args = ocp.args.PyTreeRestore(target, restore_args=options, partial_restore=True)
            with reading(f"{name!r} in {where}"):
                restored = checkpointer.restore(folder, args=args)
                if checksums is not None and checkpointing.checksums(restored)[name] != checksums.get(name):
                    raise ValueError("its checksum is not the one that was saved")
            return dict(arrays.flatten(restored))[name]

        return Leaf(tuple(stored.shape), np.dtype(stored.dtype), read)

    prefix = f"{part}/" if part else ""
    stored = arrays.flatten(tree[part] if part else tree)
    return {name: leaf(prefix + name, array) for name, array in stored if getattr(array, "dtype", None) is not None}


def _read_configs(folder: epath.Path) -> dict[str, Any]:
    """Reads the JSON files that Hugging Face puts beside weights, as far as they exist."""
    found: dict[str, Any] = {}
    for name in ("config", "preprocessor_config", "video_preprocessor_config", "processor_config"):
        if (file := folder / f"{name}.json").is_file():
            with reading(str(file)):
                found[name] = json.loads(file.read_text())
    nested = found.get("processor_config", {})  # of version 5
    processors = found.get("preprocessor_config") or found.get("video_preprocessor_config")
    processors = processors or nested.get("image_processor") or nested.get("video_processor")
    timm = (found.get("config") or {}).get("pretrained_cfg") or {}
    if not processors and "mean" in timm:
        processors = {"image_mean": timm["mean"], "image_std": timm["std"]}
    configs = {"config": found.get("config"), "preprocessor": processors}
    return {key: value for key, value in configs.items() if value}
