"""PyTorch files (.pth, .pt, .bin), read by PyTorch without running code that their pickle may hold."""

import argparse
import contextlib
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivit_jax.convert.containers.arrays import BFLOAT16, FileError, Leaf, Leaves, add, flatten

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:-1]  # near the start of files before PyTorch 1.6
PICKLE_MEMBER = re.compile(r"([^/]+/)?data\.pkl")  # in the zip archives since
# Keys under which training programs keep the state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


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
