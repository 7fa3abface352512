"""Formats: names of image models written out by hand, prefixes and training state, files written and read."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.helpers.small_models import random_params, small_config
from vivit_jax.convert import ConversionError, find_format, load_model, load_params, save_params, to_flat
from vivit_jax.convert.source import open_weights

IMAGE = {"tokenizer": "uniform_frames", "tubelet_size": (1, 4, 4), "num_frames": 1, "image_size": (12, 12)}


def image_model(**overrides):
    config = small_config(**{**IMAGE, **overrides})
    return config, random_params(config, dtype=np.float32)


def assert_equal(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def flax_names(config, params, style):
    """Returns the parameters of an image ViT under the names of vision_transformer ("augreg") or big_vision."""
    encoder, layers = params["encoder"], params["encoder"]["layers"]
    mlp, attention, second = {
        "augreg": ("MlpBlock_3", "MultiHeadDotProductAttention_1", "LayerNorm_2"),
        "big_vision": ("MlpBlock_0", "MultiHeadDotProductAttention_0", "LayerNorm_1"),
    }["augreg" if style == "augreg" else "big_vision"]
    block = {
        "LayerNorm_0": layers["norm_attention"],
        attention: layers["attention"],
        second: layers["norm_mlp"],
        mlp: {"Dense_0": layers["mlp"]["dense_in"], "Dense_1": layers["mlp"]["dense_out"]},
    }
    transformer = {"encoder_norm": encoder["norm"]}
    if style == "scan":
        transformer["encoderblock"] = block
    else:
        for i in range(config.num_layers):
            transformer[f"encoderblock_{i}"] = jax.tree.map(lambda x, i=i: x[i], block)
    tree = {"Transformer": transformer, "embedding": params["tokenizer"], "head": params["head"]}
    if config.classifier == "token":
        tree["cls"] = encoder["class_token"][None, None]
    if config.representation_size:
        tree["pre_logits"] = params["pre_logits"]
    if style == "augreg":
        transformer["posembed_input"] = {"pos_embedding": encoder["position_embedding"][None]}
    else:  # positions are added before the class token is prepended
        tree["pos_embedding"] = encoder["position_embedding"][None, int(config.classifier == "token") :]
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("style", ["augreg", "big_vision", "scan"])
@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize("classifier", ["token", "gap"])
def test_flax_image_models_are_detected_and_exact(style, prefix, classifier):
    config, params = image_model(classifier=classifier, representation_size=6)
    if style != "augreg" and classifier == "token":
        params["encoder"]["position_embedding"][0] = 0
    flat = {prefix + name: leaf for name, leaf in flax_names(config, params, style).items()}
    if prefix:
        flat[f"{prefix.split('/')[0]}_unknown"] = np.zeros(1)
        with pytest.raises(ValueError, match="_unknown"):
            load_model(flat)
        del flat[f"{prefix.split('/')[0]}_unknown"]
        flat["opt/state/param_states/embedding/kernel/momentum"] = np.zeros(1)  # training state is left out
    assert find_format(flat) == "vit_npz"
    loaded_config, loaded = load_model(flat)
    assert loaded_config == config
    assert_equal(loaded, params)
    # The same model, its embedding written as tubelets of one frame.
    tubelets = dataclasses.replace(config, tokenizer="tubelet")
    kernel = load_params(flat, config=tubelets)["tokenizer"]["kernel"]
    np.testing.assert_array_equal(kernel, params["tokenizer"]["kernel"][None])


def test_attention_pooling_is_refused():
    config, params = image_model(classifier="gap")
    flat = flax_names(config, params, "big_vision")
    flat["MAPHead_0/probe"] = np.zeros((1, 1, 8))
    with pytest.raises(ConversionError, match=r"MAPHead_0/probe.*no place[^$]*pools its tokens"):
        load_model(flat)


def test_image_grid_that_is_not_square_needs_a_hint():
    config, params = image_model(image_size=(8, 16))
    flat = flax_names(config, params, "augreg")
    with pytest.raises(ValueError, match=r"8 positions are not a square: give grid=\(rows, columns\)"):
        load_model(flat)
    assert load_model(flat, grid=(2, 4))[0].image_shape == (8, 16)
    assert load_model(flat, like=config)[0] == config
    with pytest.raises(ValueError, match=r"grid=\(3, 4\)"):
        load_model(flat, grid=(3, 4))


VIDEO = {
    "model1": {"attention": "spatiotemporal"},
    "model2": {"attention": "factorised_encoder", "temporal_layers": 3},
    "average_pool": {"attention": "factorised_encoder", "temporal_layers": 0},
    "model3": {"attention": "factorised_self_attention"},
    "model4": {"attention": "factorised_dot_product"},
    "frames": {"attention": "spatiotemporal", "tokenizer": "uniform_frames"},
    "heads": {"attention": "factorised_encoder", "num_classes": {"verb": 3, "noun": 4}, "representation_size": 6},
    "no_bias": {"attention": "factorised_self_attention", "qkv_bias": False, "num_classes": None},
}


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("container", ["npz", "msgpack"])
def test_scenic_files_are_described_and_exact(tmp_path, name, container):
    config = small_config(**VIDEO[name])
    params = random_params(config, dtype=np.float32)
    path = tmp_path / ("weights.npz" if container == "npz" else "checkpoint_0")
    save_params(params, path, "scenic", config)
    loaded_config, loaded = load_model(path, like=config)
    assert loaded_config == config.__class__.from_dict(
        {**config.to_dict(), "temporal_layers": loaded_config.temporal_layers}
    )
    assert_equal(loaded, params)


def test_old_scenic_checkpoint_drops_training_state():
    """`optimizer/target` beside momentum and counters, as in the released checkpoints."""
    config = small_config()
    params = random_params(config, dtype=np.float32)
    flat = to_flat(params, "scenic", config)
    source = {f"optimizer/target/{name}": leaf for name, leaf in flat.items()}
    source |= {f"optimizer/state/param_states/{name}/momentum": leaf for name, leaf in flat.items()}
    source |= {
        "global_step": np.zeros((), np.int32),
        "rng": np.zeros(2, np.uint32),
        "optimizer/state/step": np.zeros(()),
    }
    with open_weights(source) as weights:
        assert set(weights.leaves) == set(flat)
        assert set(weights.excluded) == set(source) - {f"optimizer/target/{name}" for name in flat}
    assert_equal(load_params(source, config=config), params)


def test_video_grid_is_read_from_positions():
    """16 x 14 x 14 tokens are always the published clip; other numbers follow the target model, or need a hint."""
    published = np.zeros((1, 1 + 16 * 14 * 14, 8), np.float32)
    config = small_config(tubelet_size=(2, 16, 16), num_frames=32, image_size=224)
    flat = to_flat(random_params(config, dtype=np.float32), "scenic", config)
    flat["Transformer/posembed_input/pos_embedding"] = published
    small = small_config(tubelet_size=(2, 16, 16), num_frames=8, image_size=112)
    assert load_model(flat)[0].grid == load_model(flat, like=small)[0].grid == (16, 14, 14)
    flat["Transformer/posembed_input/pos_embedding"] = published[:, : 1 + 8 * 7 * 7]
    assert load_model(flat, like=small)[0].grid == (8, 7, 7)
    with pytest.raises(ValueError, match=r"392 positions of the weights can be many grids: give grid"):
        load_model(flat)
    flat["Transformer/posembed_input/pos_embedding"] = published[:, : 1 + 4 * 4 * 49]
    with pytest.raises(ValueError, match=r"can be \(4, 14, 14\) or \(16, 7, 7\)"):
        load_model(flat, like=small)
    assert load_model(flat, like=small, grid=(16, 7, 7))[0].num_frames == 32


@pytest.mark.parametrize("name", ["model1", "image", "not_square"])
def test_hugging_face_folder_round_trip(tmp_path, name):
    extra = {"image": IMAGE, "not_square": {}}.get(name, {"image_size": 12, "activation": "gelu"})
    config = small_config(num_classes=3, **extra)
    params = random_params(config, dtype=np.float32)
    save_params(params, tmp_path / "hf", "huggingface", config, {"label": ["run", "jump", "sit"]})
    loaded_config, loaded = load_model(tmp_path / "hf")
    assert loaded_config == config
    assert_equal(loaded, params)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["id2label"] == {"0": "run", "1": "jump", "2": "sit"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]  # no temporary files
    with pytest.raises(FileExistsError, match="hf exists already"):
        save_params(params, tmp_path / "hf", "huggingface", config)


def test_own_checkpoint_round_trip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_config(num_classes={"verb": 3, "noun": 4}, activation="gelu", num_frames=8)
    params = random_params(config, dtype=np.float32)
    save_params(params, "run", "orbax", config)
    for path in ("run", "run/checkpoints", "run/checkpoints/0", tmp_path / "run"):
        loaded_config, loaded = load_model(path)
        assert loaded_config == config
        assert_equal(loaded, params)


INEXPRESSIBLE = [
    ("scenic", {"activation": "gelu"}, "activation = gelu, which would be read as gelu_tanh"),
    ("scenic", {"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ("scenic", {"attention_logit_cap": 50.0}, "attention_logit_cap = 50.0, which would be read as None"),
    ("huggingface", {"representation_size": 6}, "representation_size"),
    ("huggingface", {"attention": "factorised_encoder"}, "Model 1 with tubelets, not factorised_encoder"),
    ("huggingface", {"num_classes": {"verb": 3, "noun": 4}}, "one head"),
    ("vit_npz", {}, "vit_npz .* is an image model"),
]


@pytest.mark.parametrize(("format", "fields", "message"), INEXPRESSIBLE)
def test_inexpressible_models_are_refused(tmp_path, format, fields, message):
    config = small_config(**fields)
    params = random_params(config, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        save_params(params, tmp_path / "out.npz", format, config)
    assert not list(tmp_path.iterdir())


def test_wrong_model_is_named_in_the_error():
    config, params = image_model()
    flat = flax_names(config, params, "augreg")
    with pytest.raises(ValueError, match=r"is an image model.*a video model.*init_from"):
        load_params(flat, config=small_config())
    target = small_config(num_frames=8)
    flat = to_flat(random_params(small_config(), dtype=np.float32), "scenic", small_config())
    with pytest.raises(ConversionError, match=r"the weights are of: [^\n]* 4 frames[^$]*wanted: [^\n]* 8 frames"):
        load_params(flat, config=target)
