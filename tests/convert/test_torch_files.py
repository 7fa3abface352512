"""PyTorch's files against PyTorch, and pickles that bite."""

import argparse
import collections
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.written_weights import FLAT, as_dict, opcodes, read_all, same, tensor, write, write_torch
from vivit_jax.convert.containers import torch as torch_files
from vivit_jax.convert.containers.open import FileError, open_weights


def test_torch_windows_on_a_shared_storage_wrappers_and_what_is_beside(tmp_path):
    base = np.arange(24, dtype=np.float32)
    tree = (
        b"}" + opcodes("epoch") + opcodes(3) + b"s"
        + opcodes("args") + b"cargparse\nNamespace\n)\x81" + opcodes({"lr": 0.1}) + b"bs"
        + opcodes("optimizer") + as_dict({"base": base}) + b"s"
        + opcodes("state_dict") + b"}"
        + opcodes("turned") + tensor("base", base, 2, (3, 2), (1, 4)) + b"s"
        + opcodes("spread") + tensor("base", base, 5, (2, 3), (0, 1)) + b"s"
        + opcodes("version") + opcodes(1) + b"ss"
    )  # fmt: skip
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_torch(tmp_path / "f", {"base": base}, tree=tree, method=method)
        with open_weights(tmp_path / "f") as weights:
            strided = np.lib.stride_tricks.as_strided
            same(weights, {"turned": strided(base[2:], (3, 2), (4, 16)), "spread": strided(base[5:], (2, 3), (0, 4))})
            assert weights.facts == {
                "unwrapped": ["state_dict"],
                "other": {"epoch": 3, "args": {"lr": 0.1}, "optimizer": "1 tensors, not read", "version": 1},
            }


def test_torch_files_of_a_big_endian_machine(tmp_path):
    swapped = {
        "w": FLAT["a/kernel"].byteswap(),
        "b": FLAT["brain"].view(np.uint16).byteswap().view(FLAT["brain"].dtype),
    }
    write_torch(tmp_path / "f", swapped, big=True)
    with open_weights(tmp_path / "f") as weights:
        same(weights, {"w": FLAT["a/kernel"], "b": FLAT["brain"]})


@pytest.mark.parametrize("window", [{"offset": 9}, {"strides": (4, -1)}, {"shape": (3, 5)}, {"shape": (12,)}])
def test_a_torch_tensor_beyond_its_storage_is_refused(window, tmp_path):
    arrays = {"w": FLAT["a/kernel"]}
    write_torch(tmp_path / "f", arrays, tree=as_dict(arrays, **window))
    with pytest.raises(FileError, match="'w' in"):
        open_weights(tmp_path / "f")


ATTACKS = {
    "os.system": b"cposix\nsystem\n(X%s%stR",
    "builtins.eval": b"c__builtin__\neval\n(X%s%stR",
    "by name of protocol 4": b"\x8c\x05posix\x8c\x06system\x93(X%s%stR",
    "a method of an allowed name": b"ccollections\nOrderedDict.__init__.__globals__\n(X%s%stR",
    "a submodule of torch": b"ctorch.serialization\nos.system\n(X%s%stR",
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_pickle_is_executed(attack, old, tmp_path):
    mark = tmp_path / "executed"
    command = (f"open({str(mark)!r}, 'w')" if "eval" in attack else f"touch {mark}").encode()
    payload = ATTACKS[attack] % (len(command).to_bytes(4, "little"), command)
    if old:
        heads = b"".join(pickle.dumps(value, 2) for value in (torch_files.MAGIC, 1001, {"little_endian": True}))
        (tmp_path / "f").write_bytes(heads + b"\x80\x04" + payload + b".")
    else:
        write_torch(tmp_path / "f", {}, tree=payload)
    with pytest.raises(
        FileError, match=r"(?s)neither a tensor nor a plain value; nothing of it was executed.*safetensors"
    ):
        open_weights(tmp_path / "f")
    assert not mark.exists()


def test_a_pickle_leaves_nothing_behind_for_the_next(tmp_path):
    # BUILD with two states sets attributes of what it is given: here of the function that makes tensors.
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "torch\nFloatStorage"):
        build = b"c" + name.encode() + b"\n" + opcodes((None, {"__defaults__": (1,), "__init__": 1, "dtype": 1})) + b"b"
        write_torch(tmp_path / "evil", {}, tree=build)
        with pytest.raises(FileError):
            open_weights(tmp_path / "evil")
    with open_weights(write("torch", tmp_path / "good")) as weights:
        same(weights, FLAT)


def test_a_damaged_number_in_a_pickle_does_not_take_all_memory(tmp_path):
    write_torch(tmp_path / "f", {}, tree=b"}r\xff\xff\xff\xff")
    with pytest.raises(FileError, match="numbers an object 4294967295 at byte"):
        open_weights(tmp_path / "f")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_itself(new, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "window": base[1:, :, 2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "complex": torch.complex(base, -base),
        "scalar": torch.tensor(3),
        "flags": base > 4,
        "empty": base[:0],
        "large": torch.arange(3).to(torch.uint16),
        "parameter": torch.nn.Parameter(base),
    }
    module = torch.nn.Linear(2, 3)
    beside = {"epoch": 4, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "device": torch.device("cpu")}
    tree = {"model": collections.OrderedDict(tensors), **beside, "optimizer": {"state": {0: {"exp_avg": base}}}}
    for wrapped in (tree, module.state_dict()):
        torch.save(wrapped, tmp_path / "f", _use_new_zipfile_serialization=new)
        expected = wrapped.get("model", wrapped)
        expected = {
            name: t.detach().float().numpy().astype(ml_dtypes.bfloat16) if name == "brain" else t.detach().numpy()
            for name, t in expected.items()
        }
        with open_weights(tmp_path / "f") as weights:
            same(weights, expected)
            if wrapped is tree:
                assert weights.facts["unwrapped"] == ["model"]
                assert weights.facts["other"] == {
                    "epoch": 4,
                    "args": {"lr": 0.1},
                    "best": 0.5,
                    "device": "cpu",
                    "optimizer": "1 tensors, not read",
                }
    whole = (tmp_path / "f").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "f").write_bytes(whole[:length])
        with pytest.raises(FileError):
            read_all(tmp_path / "f")
    torch.save({"w": base.to(torch.float8_e4m3fn)}, tmp_path / "f", _use_new_zipfile_serialization=new)
    with pytest.raises(FileError, match=r"torch\.float8_e4m3fn; known are .*float32"):
        open_weights(tmp_path / "f")
    torch.save(module, tmp_path / "f", _use_new_zipfile_serialization=new)
    with pytest.raises(FileError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        open_weights(tmp_path / "f")
    if new:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(tensors, tmp_path / "f")
        finally:
            torch.serialization.set_crc32_options(True)
        with open_weights(tmp_path / "f") as weights:
            np.testing.assert_array_equal(weights.leaves["transposed"].read(), tensors["transposed"].numpy())


def test_the_golden_torch_file_is_its_safetensors_twin(shared):
    folder = shared / "golden" / "hf" / "timm_vit_tiny"
    with open_weights(folder / "model.pth") as ours, open_weights(folder) as twin:
        assert (ours.container, twin.container) == ("torch", "safetensors")
        same(ours, {name: leaf.read() for name, leaf in twin.leaves.items()})
        assert twin.facts["config"]["embed_dim"] == ours.leaves["cls_token"].shape[-1]
