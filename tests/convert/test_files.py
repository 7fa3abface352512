"""Containers of weights: detection, round trips, damage, folders."""

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

from tests.helpers.written_weights import FLAT, KINDS, RNG, assert_holds, needs_torch, read_all, write
from vivit_jax import checkpoint as checkpointing
from vivit_jax.convert.containers.open import FileError, open_container


@pytest.mark.parametrize("kind", KINDS)
def test_containers_round_trip_exactly(kind, tmp_path):
    with open_container(write(kind, tmp_path / "weights")) as container:
        assert container.kind == kind.split()[0]
        assert_holds(container, FLAT)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file_is_refused(kind, tmp_path):
    whole = write(kind, tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    step = 37 if "torch" in kind else 7
    for length in sorted({*range(0, 64, step // 7), *range(64, len(whole), step), len(whole) - 1}):
        cut.write_bytes(whole[:length])
        with pytest.raises(FileError, match=f"{cut} "):
            read_all(cut)


@pytest.mark.parametrize("kind", ["npz", "npz compressed"])
def test_flipped_bit_in_a_zip_is_refused(kind, tmp_path):
    path = write(kind, tmp_path / "weights")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if "kernel" in info.filename)
    names = sum(struct.unpack_from("<HH", data, info.header_offset + 26))
    data[info.header_offset + 30 + names + info.compress_size - 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(FileError, match="is cut off or damaged"):
        read_all(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_opening_does_not_read_arrays(kind, tmp_path, monkeypatch):
    path = write(kind, tmp_path / kind)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", None)
    monkeypatch.setattr(np, "frombuffer", None)
    with open_container(path) as container:
        assert {name: leaf.shape for name, leaf in container.leaves.items()} == {k: v.shape for k, v in FLAT.items()}


def test_mapping_is_flattened():
    source = {"layers": [{"w": jnp.ones((2, 3), jnp.bfloat16)}, {"w": np.arange(3)}], "flat/name": np.float32(2)}
    with open_container(source) as container:
        assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in container.leaves.items()} == {
            "layers/0/w": ((2, 3), "bfloat16"),
            "layers/1/w": ((3,), "int64"),
            "flat/name": ((), "float32"),
        }
        np.testing.assert_array_equal(container.leaves["layers/1/w"].read(), [0, 1, 2])
    with pytest.raises(FileError, match=r"two arrays named 'a/b'"):
        open_container({"a/b": np.ones(1), "a": {"b": np.ones(1)}})
    with pytest.raises(FileError, match=r"'a/b' in the mapping is a NoneType and no array"):
        open_container({"a": {"b": None}})
    with pytest.raises(FileError, match="no arrays"):
        open_container({})


def test_npz_array_orders_and_python_objects(tmp_path):
    np.savez(tmp_path / "a.npz", columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)), big=np.arange(3, dtype=">i4"))
    with open_container(tmp_path / "a.npz") as container:
        assert_holds(container, {"columns": np.arange(6.0).reshape(2, 3), "big": np.arange(3, dtype=">i4")})
    np.savez(tmp_path / "b.npz", w=np.array([None, 1], object))
    with pytest.raises(FileError, match=r"'w' in .*b\.npz is an array of Python objects"):
        open_container(tmp_path / "b.npz")


def test_safetensors_float8_is_refused(tmp_path):
    safetensors.numpy.save_file({"w": np.ones(2, ml_dtypes.float8_e4m3fn)}, tmp_path / "f")
    message = r"'w' in .* is of type F8_E4M3; supported are .*BF16.*Save the weights in float32"
    with pytest.raises(FileError, match=message):
        open_container(tmp_path / "f")


def test_flax_msgpack_with_chunks_and_scalars(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    large = RNG.normal(size=(5, 12))
    tree = {
        "target": {"large": large, "scalar": np.float32(2)},
        "list": [3, 2.5, large[0]],
        "z": 1 + 2j,
        "absent": None,
        "label": "x",
    }
    (tmp_path / "checkpoint_9").write_bytes(flax.serialization.msgpack_serialize({"old": large}))
    (tmp_path / "checkpoint_10").write_bytes(flax.serialization.msgpack_serialize(tree))
    with open_container(tmp_path) as container:  # the latest checkpoint of the folder
        assert container.where.endswith("checkpoint_10")
        assert_holds(
            container,
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
    "array": (b"\x93NUMPY\x01\x00", r"of no known kind \(it begins with b'\\x93NUMPY"),
    "zeros": (bytes(4096), "zeros only"),
    "noise": (b"\x07weights!", r"of no known kind.*supported are \.npz"),
    "deep msgpack": (b"\x81\xa1a" * 5000, "cut off or damaged"),
    "trailing bytes": (flax.serialization.msgpack_serialize({"a": 1}) + b"more", "cut off or damaged .*extra data"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_files_are_named_in_the_error(kind, tmp_path):
    content, message = BAD[kind]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(FileError, match=f"(?s){tmp_path / 'file'} .*{message}|{message}"):
        open_container(tmp_path / "file")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_container(tmp_path / "absent.npz")


def write_shards(folder, **missing):
    shard_of = {"a/kernel": "m-1.safetensors", "a/bias": "m-2.safetensors", "half": "m-2.safetensors"}
    for shard in set(shard_of.values()):
        safetensors.numpy.save_file({k: FLAT[k] for k, v in shard_of.items() if v == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of | missing}))
    return index


def test_shards_open_by_folder_or_index(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vivit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"offset": true}')
    for path in (tmp_path, index):
        with open_container(path) as container:
            assert_holds(container, {name: FLAT[name] for name in ("a/kernel", "a/bias", "half")})
            assert container.kind == "safetensors"
            assert container.metadata == {"config": {"model_type": "vivit"}, "preprocessor": {"offset": True}}


def test_all_missing_shards_are_listed(tmp_path):
    write_shards(tmp_path, x="m-3.safetensors", y="m-4.safetensors")
    message = r"names 4 shards.* missing: m-3\.safetensors, m-4\.safetensors; download them"
    with pytest.raises(FileError, match=message):
        open_container(tmp_path)
    write_shards(tmp_path, x="m-1.safetensors")
    with pytest.raises(FileError, match=r"lack 1 arrays that it names \(x\)"):
        open_container(tmp_path)


@needs_torch
def test_folder_prefers_safetensors_to_torch(tmp_path):
    write("torch", tmp_path / "pytorch_model.bin")
    with open_container(tmp_path) as container:
        assert container.kind == "torch"
    write("safetensors", tmp_path / "model.safetensors")
    with open_container(tmp_path) as container:
        assert container.kind == "safetensors"


def test_hugging_face_config_beside_a_file(tmp_path):
    write("safetensors", tmp_path / "model.safetensors")
    for text, read in {'{"model_type": "vit"}': True, '{"name": "vit"}': False, "{": False}.items():
        (tmp_path / "config.json").write_text(text)
        with open_container(tmp_path / "model.safetensors") as container:
            assert ("config" in container.metadata) is read
    with pytest.raises(FileError, match=r"config\.json is cut off"):
        open_container(tmp_path)


def test_folder_must_hold_exactly_one_weight_file(tmp_path):
    (tmp_path / "README.md").write_text("# Weights")
    (tmp_path / "video.npz.part").write_text("<html>")
    with pytest.raises(FileError, match=r"folder without weights; it holds README\.md, video\.npz\.part"):
        open_container(tmp_path)
    write("npz", tmp_path / "a.npz")
    with open_container(tmp_path) as container:
        assert_holds(container, FLAT)
    write("msgpack", tmp_path / "b")
    with pytest.raises(FileError, match=r"several weight files; give one: a\.npz, b"):
        open_container(tmp_path)


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


def test_run_yields_parameters_of_its_best_step(run):
    bias = np.arange(900, dtype=np.float32)
    for path, step in {"": 3, "checkpoints": 3, "checkpoints/7": 7}.items():
        with open_container(run / path) as container:
            assert (container.kind, container.metadata["checkpoint"]["step"]) == ("orbax", step)
            assert container.where.endswith(f"checkpoints/{step}")
            assert_holds(container, {"head/kernel": np.full((4, 2), step, ml_dtypes.bfloat16), "head/bias": bias})


def test_checkpoint_with_wrong_checksum_is_refused(run, tmp_path):
    step = tmp_path / "7"
    subprocess.run(["cp", "-r", run / "checkpoints" / "7", step], check=True)
    meta = step / "meta" / "metadata"
    record = json.loads(meta.read_text())
    record["checksums"]["params/head/bias"] ^= 1
    del record["digest"]  # of the metadata, which older checkpoints lack
    meta.write_text(json.dumps(record))
    with open_container(step) as container:
        container.leaves["head/kernel"].read()
        with pytest.raises(FileError, match=r"'params/head/bias' in .*7 is cut off or damaged.*checksum"):
            container.leaves["head/bias"].read()


def test_reading_imports_no_training_framework(tmp_path):
    kinds = ("npz", "npz compressed", "safetensors", "msgpack")
    paths = [os.fspath(write(kind, tmp_path / kind.replace(" ", "_"))) for kind in kinds]
    script = (
        "import sys; from vivit_jax.convert.containers.open import open_container\n"
        f"for path in {paths!r}:\n  [leaf.read() for leaf in open_container(path).leaves.values()]\n"
        "assert not {'torch', 'tensorflow', 'clu', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
