"""What files of weights hold: every container against its own library's writer, damage, folders."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.written_weights import FLAT, KINDS, RNG, read_all, same, write
from vivit_jax import checkpoint as checkpointing
from vivit_jax.convert.containers import arrays, torch
from vivit_jax.convert.containers.open import FileError, open_weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_is_known_by_its_bytes_and_read_to_the_bit(kind, tmp_path):
    with open_weights(write(kind, tmp_path / "weights")) as weights:
        assert weights.container == kind.split()[0]
        same(weights, FLAT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_an_error_and_never_other_numbers(kind, tmp_path):
    whole = write(kind, tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for length in sorted({*range(0, 64), *range(64, len(whole), 7), len(whole) - 1}):
        cut.write_bytes(whole[:length])
        with pytest.raises(FileError, match=f"{cut} "):
            read_all(cut)


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "torch"])
def test_a_bit_that_flipped_in_a_zip_is_found(kind, tmp_path):
    path = write(kind, tmp_path / "weights")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if "kernel" in info.filename)
    names = sum(struct.unpack_from("<HH", data, info.header_offset + 26))
    data[info.header_offset + 30 + names + info.compress_size - 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(FileError, match="is cut off or damaged"):
        read_all(path)


def test_what_is_only_opened_is_not_read(tmp_path, monkeypatch):
    paths = [write(kind, tmp_path / kind) for kind in KINDS]
    monkeypatch.setattr(arrays, "read_stream", None)
    monkeypatch.setattr(torch, "read_stream", None)
    for path in paths:
        with open_weights(path) as weights:
            assert {name: leaf.shape for name, leaf in weights.leaves.items()} == {k: v.shape for k, v in FLAT.items()}


def test_a_mapping_is_flattened_and_its_arrays_are_copied():
    source = {"layers": [{"w": jnp.ones((2, 3), jnp.bfloat16)}, {"w": np.arange(3)}], "flat/name": np.float32(2)}
    with open_weights(source) as weights:
        assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in weights.leaves.items()} == {
            "layers/0/w": ((2, 3), "bfloat16"),
            "layers/1/w": ((3,), "int64"),
            "flat/name": ((), "float32"),
        }
        weights.leaves["layers/1/w"].read()[:] = -1
    assert source["layers"][1]["w"].tolist() == [0, 1, 2]
    with pytest.raises(FileError, match=r"two arrays named 'a/b'"):
        open_weights({"a/b": np.ones(1), "a": {"b": np.ones(1)}})
    with pytest.raises(FileError, match=r"'a/b' in the mapping is a NoneType and no array"):
        open_weights({"a": {"b": None}})
    with pytest.raises(FileError, match="no arrays"):
        open_weights({})


def test_npz_in_columns_and_arrays_of_objects(tmp_path):
    np.savez(tmp_path / "a.npz", columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)), big=np.arange(3, dtype=">i4"))
    with open_weights(tmp_path / "a.npz") as weights:
        same(weights, {"columns": np.arange(6.0).reshape(2, 3), "big": np.arange(3, dtype=">i4")})
    np.savez(tmp_path / "b.npz", w=np.array([None, 1], object))
    with pytest.raises(FileError, match=r"'w' in .*b\.npz is an array of Python objects"):
        open_weights(tmp_path / "b.npz")


def test_safetensors_of_a_type_that_no_model_is_kept_in(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(2, ml_dtypes.float8_e4m3fn)}, tmp_path / "f")
    with pytest.raises(FileError, match=r"'w' in .* is of type F8_E4M3; known are .*BF16.*Save the weights in float32"):
        open_weights(tmp_path / "f")


def test_msgpack_of_flax_in_all_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    large = RNG.normal(size=(5, 12))
    tree = {
        "target": {"large": large, "scalar": np.float32(2)},
        "list": [3, 2.5, large[0]],
        "z": 1 + 2j,
        "absent": None,
    }
    (tmp_path / "checkpoint_9").write_bytes(flax.serialization.msgpack_serialize(tree))
    (tmp_path / "checkpoint_10").write_bytes(flax.serialization.msgpack_serialize(tree | {"label": "x"}))
    with open_weights(tmp_path) as weights:
        assert weights.where.endswith("checkpoint_10")
        assert weights.facts["other"] == {"absent": None, "label": "x"}
        same(
            weights,
            {
                "target/large": large,
                "target/scalar": np.array(2, np.float32),
                "list/0": np.array(3),
                "list/1": np.array(2.5),
                "list/2": large[0],
                "z": np.array(1 + 2j),
            },
        )


BAD = {
    "empty": (b"", "is empty"),
    "page": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page.*download failed"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7\n", "git lfs pull"),
    "json": (b'{"model_type": "vivit"}', "is JSON text"),
    "index": (b'{"metadata": {}}', "without a weight_map"),
    "pickle": (pickle.dumps({"w": [1.0]}), "is a pickle of Python objects"),
    "array": (b"\x93NUMPY\x01\x00", r"\.npy"),
    "zeros": (bytes(4096), "zeros only"),
    "noise": (b"\x07weights!", r"of no known kind.*known are \.npz"),
    "deep msgpack": (b"\x81\xa1a" * 5000, "cut off or damaged"),
    "pickle in msgpack": (flax.serialization.msgpack_serialize({"a": 1}) + b"more", "bytes after its msgpack"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_weights_is_told_by_what_it_is(kind, tmp_path):
    content, message = BAD[kind]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(FileError, match=f"(?s){tmp_path / 'file'} .*{message}|{message}"):
        open_weights(tmp_path / "file")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_weights(tmp_path / "absent.npz")


def shards(folder, **missing):
    places = {"a/kernel": "m-1.safetensors", "a/bias": "m-2.safetensors", "half": "m-2.safetensors"}
    for shard in set(places.values()):
        safetensors.numpy.save_file({k: FLAT[k] for k, v in places.items() if v == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places | missing}))
    return index


def test_shards_are_one_by_their_folder_or_their_index(tmp_path):
    index = shards(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vivit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"offset": true}')
    for path in (tmp_path, index):
        with open_weights(path) as weights:
            same(weights, {name: FLAT[name] for name in ("a/kernel", "a/bias", "half")})
            assert weights.container == "safetensors"
            assert weights.facts["config"] == {"model_type": "vivit"}
            assert weights.facts["preprocessor"] == {"offset": True}


def test_all_missing_shards_are_named_at_once(tmp_path):
    shards(tmp_path, x="m-3.safetensors", y="m-4.safetensors")
    with pytest.raises(FileError, match=r"names 4 shards.* missing: m-3\.safetensors, m-4\.safetensors; fetch them"):
        open_weights(tmp_path)
    shards(tmp_path, x="m-1.safetensors")
    with pytest.raises(FileError, match=r"lack 1 arrays that it names \(x\)"):
        open_weights(tmp_path)


def test_safetensors_before_bin_and_the_config_beside_a_file(tmp_path):
    write("torch", tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with open_weights(tmp_path) as weights:
        assert (weights.container, weights.facts["config"]) == ("torch", {"model_type": "vit"})
    write("safetensors", tmp_path / "model.safetensors")
    with open_weights(tmp_path) as weights:
        assert (weights.container, weights.facts["metadata"]) == ("safetensors", {"format": "np"})
    for text, found in {'{"model_type": "vit"}': True, '{"name": "vit"}': False, "{": False}.items():
        (tmp_path / "config.json").write_text(text)
        with open_weights(tmp_path / "pytorch_model.bin") as weights:
            assert ("config" in weights.facts) is found
    with pytest.raises(FileError, match=r"config\.json is cut off"):
        open_weights(tmp_path)


def test_a_folder_with_one_file_of_weights_with_several_and_with_none(tmp_path):
    (tmp_path / "README.md").write_text("# Weights")
    (tmp_path / "video.npz.part").write_text("<html>")
    with pytest.raises(FileError, match=r"(?s)folder without weights.*video\.npz\.part is a web page"):
        open_weights(tmp_path)
    write("npz", tmp_path / "a.npz")
    with open_weights(tmp_path) as weights:
        same(weights, FLAT)
    write("msgpack", tmp_path / "b")
    with pytest.raises(FileError, match=r"several files of weights; give one: a\.npz, b"):
        open_weights(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with checkpointing.Checkpoints(workdir / "checkpoints", best_metric="score") as checkpoints:
        for step, score in {3: 0.9, 7: 0.2}.items():
            params = {"head": {"kernel": jnp.full((4, 2), step, jnp.bfloat16), "bias": jnp.arange(900.0)}}
            meta = {"config": {"checkpoint": {"best_metric": "score"}}, "heads": {"label": 2}}
            checkpoints.save(step, {"params": params, "opt_state": params, "step": step}, meta, {"score": score})
            checkpoints.wait()
    return workdir


def test_a_run_hands_over_the_parameters_of_its_best_step_alone(run):
    bias = np.arange(900, dtype=np.float32)
    for path, step in {"": 3, "checkpoints": 3, "checkpoints/7": 7}.items():
        with open_weights(run / path) as weights:
            assert (weights.container, weights.facts["meta"]["step"]) == ("orbax", step)
            assert weights.where.endswith(f"checkpoints/{step}")
            same(weights, {"head/kernel": np.full((4, 2), step, ml_dtypes.bfloat16), "head/bias": bias})


def test_a_checkpoint_that_was_altered_is_found(run, tmp_path):
    step = tmp_path / "7"
    subprocess.run(["cp", "-r", run / "checkpoints" / "7", step], check=True)
    meta = step / "meta" / "metadata"
    record = json.loads(meta.read_text())
    record["checksums"]["params/head/bias"] ^= 1
    meta.write_text(json.dumps(record))
    with open_weights(step) as weights:
        weights.leaves["head/kernel"].read()
        with pytest.raises(FileError, match=r"'params/head/bias' in .*7 is cut off or damaged.*checksum"):
            weights.leaves["head/bias"].read()


def test_reading_imports_neither_torch_nor_tensorflow(tmp_path):
    paths = [os.fspath(write(kind, tmp_path / kind.replace(" ", "_"))) for kind in KINDS]
    script = (
        "import sys; from vivit_jax.convert.containers.open import open_weights\n"
        f"for path in {paths!r}:\n  [leaf.read() for leaf in open_weights(path).leaves.values()]\n"
        "assert not {'torch', 'tensorflow', 'clu', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
