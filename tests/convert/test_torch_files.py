"""PyTorch files: state dicts and training checkpoints, and pickles with code, which never runs."""

import argparse
import collections
import pickle
import sys
import zipfile

import numpy as np
import pytest

from tests.helpers.written_weights import assert_holds, needs_torch
from vivit_jax.convert.containers.open import FileError, open_container


def write_pickle(path, opcodes, legacy=False):
    """Writes a PyTorch file with the given pickle opcodes in place of a state dict."""
    if legacy:
        heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + b"\x80\x04" + opcodes + b".")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x04" + opcodes + b".")
            archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_missing_torch_names_the_extra(legacy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    write_pickle(tmp_path / "f", b"}", legacy)
    with pytest.raises(FileError, match=r"/f is a PyTorch file.*pip install 'vivit_jax\[torch\]', or .* safetensors"):
        open_container(tmp_path / "f")


@needs_torch
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint_yields_its_state_dict(new, tmp_path):
    import torch

    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "window": base[1:, :, 2],
        "complex": torch.complex(base, -base),
        "integers": torch.arange(3).to(torch.uint16 if new else torch.int16),
        "parameter": torch.nn.Parameter(base),
    }
    checkpoint = {
        "model": collections.OrderedDict(tensors),
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "device": torch.device("cpu"),
        "optimizer": {"state": {0: {"exp_avg": base}}},
    }
    module = torch.nn.Linear(2, 3)
    for tree, state in ((checkpoint, tensors), (module.state_dict(), module.state_dict())):
        torch.save(tree, tmp_path / "f", _use_new_zipfile_serialization=new)
        with open_container(tmp_path / "f") as container:
            assert_holds(container, {name: tensor.detach().numpy() for name, tensor in state.items()})


@needs_torch
def test_unsupported_torch_contents_are_refused(tmp_path):
    import torch

    refused = {
        r"'w' in .* is of type float8_e4m3fn; save the weights in float32": {
            "w": torch.ones(2).to(torch.float8_e4m3fn)
        },
        r"asks for torch\.nn\.modules\.linear\.Linear.*state_dict\(\) as safetensors": torch.nn.Linear(2, 3),
        r"holds a list, not a dict of tensors; save the state_dict\(\)": [torch.ones(2)],
        r"holds no arrays": {"epoch": 3},
    }
    for message, tree in refused.items():
        torch.save(tree, tmp_path / "f")
        with pytest.raises(FileError, match=message):
            open_container(tmp_path / "f")


ATTACKS = {
    "os.system": b"cposix\nsystem\n(X%s%stR",
    "builtins.eval": b"c__builtin__\neval\n(X%s%stR",
    "protocol 4 name": b"\x8c\x05posix\x8c\x06system\x93(X%s%stR",
    "method of an allowed name": b"ccollections\nOrderedDict.__init__.__globals__\n(X%s%stR",
    "submodule of torch": b"ctorch.serialization\nos.system\n(X%s%stR",
}


@needs_torch
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_in_a_pickle_is_not_executed(attack, legacy, tmp_path):
    mark = tmp_path / "executed"
    command = (f"open({str(mark)!r}, 'w')" if "eval" in attack else f"touch {mark}").encode()
    write_pickle(tmp_path / "f", ATTACKS[attack] % (len(command).to_bytes(4, "little"), command), legacy)
    with pytest.raises(FileError, match=r"more than tensors and plain values.*nothing in it was executed.*safetensors"):
        open_container(tmp_path / "f")
    assert not mark.exists()


@needs_torch
def test_golden_torch_file_equals_safetensors(shared):
    folder = shared / "golden" / "hf" / "timm_vit_tiny"
    with open_container(folder / "model.pth") as container, open_container(folder) as twin:
        assert (container.kind, twin.kind) == ("torch", "safetensors")
        assert_holds(container, {name: leaf.read() for name, leaf in twin.leaves.items()})
        assert twin.metadata["config"]["embed_dim"] == container.leaves["cls_token"].shape[-1]
