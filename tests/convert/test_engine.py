"""The conversion engine: exact both ways; all leaves that do not fit are listed."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.helpers.small_models import MODELS, random_params, small_config
from vivit_jax.convert import ConversionError, find_format, load_params, save_params, to_flat

VARIANTS = {
    **MODELS,
    "gap": {**MODELS["model2"], "classifier": "gap", "representation_size": 6},
    "space_time": {**MODELS["model3"], "attention_order": "space_time", "qkv_bias": False},
    "heads": {**MODELS["average_pool"], "num_classes": {"verb": 3, "noun": 4}, "tokenizer": "uniform_frames"},
    "no_head": {**MODELS["model4"], "num_classes": None},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_scenic_round_trip_is_exact(name, tmp_path):
    config = small_config(**VARIANTS[name])
    params = random_params(config, dtype=np.float32)
    save_params(params, tmp_path / "weights.npz", "scenic", config)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "weights.npz", config=config), params)


def test_scenic_heads_are_columns_of_one_projection():
    """The published EPIC-Kitchens models: one projection, first the verbs, then the nouns."""
    config = small_config(num_classes={"verb": 3, "noun": 4})
    params = random_params(config, dtype=np.float32)
    kernel = to_flat(params, "scenic", config)["output_projection/kernel"]
    np.testing.assert_array_equal(kernel[:, :3], params["head_verb"]["kernel"])
    np.testing.assert_array_equal(kernel[:, 3:], params["head_noun"]["kernel"])


@pytest.mark.parametrize("layout", ["optimizer/target/", "params/", "", "nested"])
def test_prefixes_are_detected(layout):
    config = small_config()
    params = random_params(config, dtype=np.float32)
    flat = to_flat(params, "scenic", config)
    if layout == "nested":
        source = {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
    else:
        source = {layout + name: leaf for name, leaf in flat.items()}
    assert find_format(flax.traverse_util.flatten_dict(source, sep="/")) == "scenic"
    jax.tree.map(np.testing.assert_array_equal, load_params(source, config=config), params)


def test_loading_lists_all_problems():
    config = small_config()
    flat = to_flat(random_params(config, dtype=np.float32), "scenic", config)
    flat["Transformer/encoderblock_0/gate"] = np.zeros(3)
    flat["Transformer/encoderblock_2/LayerNorm_0/scale"] = np.ones(8)
    del flat["cls"]
    del flat["Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias"]
    flat["embedding/kernel"] = flat["embedding/kernel"][:1]
    flat["Transformer/encoderblock_1/MlpBlock_0/Dense_1/kernel"] = np.zeros((4, 8))
    flat["Transformer/posembed_input/pos_embedding"] = np.zeros((2, 13, 8))
    with pytest.raises(ConversionError) as error:
        load_params(flat, config=config)
    expected = [
        "Transformer/encoderblock_0/gate (3,): no place",
        "encoder/layers/norm_attention/scale: the source has layers [2] too",
        "encoder/class_token (8,): nothing in the source fills it",
        "encoder/layers/mlp/dense_in/bias: layers [1] are missing",
        "tokenizer/kernel: the source has shape (1, 4, 4, 3, 8), the model (2, 4, 4, 3, 8)",
        "encoder/layers/mlp/dense_out/kernel: layers [1] have shape (4, 8), the model (12, 8)",
        "encoder/position_embedding: the source has shape (2, 13, 8), the model (13, 8)",
    ]
    for line in expected:
        assert line in str(error.value)
    assert len(error.value.problems) == len(expected)


def test_saving_lists_all_problems():
    config = small_config()
    params = random_params(config, dtype=np.float32)
    with pytest.raises(ConversionError, match=r"extra/kernel.*no name"):
        to_flat({**params, "extra": {"kernel": np.zeros(2)}}, "scenic", config)
    two = small_config(num_classes={"verb": 3, "noun": 4})
    params = random_params(two, dtype=np.float32)
    del params["head_noun"]
    with pytest.raises(ConversionError, match="head_noun/bias, which is missing"):
        to_flat(params, "scenic", two)


def test_unusable_sources_are_refused(tmp_path):
    config = small_config()
    flat = to_flat(random_params(config, dtype=np.float32), "scenic", config)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere\.npz"):
        load_params(tmp_path / "nowhere.npz", config=config)
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz is of no known kind"):
        load_params(tmp_path / "text.npz", config=config)
    np.savez(tmp_path / "whole.npz", **flat)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cut\.npz"):
        load_params(tmp_path / "cut.npz", config=config)
    np.savez(tmp_path / "pickled.npz", cls=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        load_params(tmp_path / "pickled.npz", config=config)
    with pytest.raises(ValueError, match="no known format"):
        load_params({"layer.0.weight": np.zeros(2)}, config=config)
    with pytest.raises(ValueError, match=r"format='keras' is not known; choose one of .*scenic"):
        load_params(flat, "keras", config=config)
    with pytest.raises(ValueError, match="prefix='ema/'"):
        load_params(flat, config=config, prefix="ema/")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_params({}, tmp_path / "weights.bin", "vit_npz", config)
    with pytest.raises(ValueError, match=r"beside it \(ema, \.\.\.\).*: --prefix=params/ \(prefix="):
        load_params({"ema": np.zeros(()), **{f"params/{name}": leaf for name, leaf in flat.items()}}, config=config)
    flat["cls"] = np.full_like(flat["cls"], np.nan)
    with pytest.raises(ConversionError, match="encoder/class_token: holds NaN"):
        load_params(flat, config=config)


def test_half_precision_is_widened():
    config = small_config()
    flat = to_flat(random_params(config, dtype=np.float16), "scenic", config)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_params(flat, config=config))} == {np.dtype("float32")}
