"""Weights as other programs leave them: prefixes, other models, parts that ViT does not have, folders of Orbax."""

import contextlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from tests.helpers.small_models import random_params, small_config
from vivit_jax import convert
from vivit_jax.convert import ConversionError, InitFrom

IMAGE = small_config(
    tokenizer="uniform_frames", tubelet_size=(1, 4, 4), num_frames=1, image_size=(12, 12), activation="gelu"
)
VIDEO = small_config(image_size=(12, 12), activation="gelu")


def arrays(config, format):
    params = random_params(config, dtype=np.float32)
    return params, convert.to_flat(params, format, config)


@pytest.mark.parametrize("format", ["huggingface", "timm"])
@pytest.mark.parametrize("prefix", ["net.", "backbone.", "vivit.", "model.vivit.", "_orig_mod.module.", "student/net."])
def test_any_common_prefix_is_found(format, prefix):
    params, flat = arrays(IMAGE, format)
    _, loaded = convert.load_model({prefix + name: leaf for name, leaf in flat.items()}, num_heads=2)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_compiled_modules_and_several_models():
    params, flat = arrays(IMAGE, "timm")
    compiled = {name.replace("blocks.0", "blocks.0._orig_mod"): leaf for name, leaf in flat.items()}
    jax.tree.map(np.testing.assert_array_equal, convert.load_model(compiled, num_heads=2)[1], params)
    two = {f"{whose}.{name}": leaf for whose in ("student", "teacher") for name, leaf in flat.items()}
    with pytest.raises(
        ValueError, match=r"several models, under 'student\.' and 'teacher\.': choose one, --prefix=student\."
    ):
        convert.load_model(two, num_heads=2)
    assert convert.load_model(two, num_heads=2, prefix="teacher.")[0] == IMAGE
    beside = {name if name.startswith("head") else f"backbone.{name}": leaf for name, leaf in flat.items()}
    with pytest.raises(ValueError, match=r"under 'backbone\.' and 2 beside it \(head\.\w+, .*--prefix=backbone\."):
        convert.load_model(beside, num_heads=2)


@pytest.mark.parametrize(
    ("name", "shape", "model"),
    [
        ("timesformer.embeddings.time_embeddings", (1, 4, 8), "TimeSformer"),
        ("model.blocks.0.temporal_attn.qkv.weight", (24, 8), "TimeSformer"),
        ("blocks.0.attn.q_bias", (8,), "VideoMAE"),
        ("module.predictor_blocks.0.norm1.weight", (8,), "V-JEPA"),
        ("encoder.layer.0.layer_scale1.lambda1", (8,), "DINOv2"),
        ("reg_token", (1, 4, 8), "DINOv2 with registers"),
        ("dist_token", (1, 1, 8), "DeiT, distilled"),
        ("deit.embeddings.distillation_token", (1, 1, 8), "DeiT, distilled"),
        ("visual.class_embedding", (8,), "CLIP"),
        ("vision_model.embeddings.patch_embedding.weight", (8, 3, 4, 4), "SigLIP"),
        ("layers.0.blocks.0.attn.proj.weight", (8, 8), "Swin"),
        ("encoder.layer.0.attention.per_dim_scale", (8,), "VideoPrism"),
    ],
)
def test_other_models_are_named(name, shape, model):
    _, flat = arrays(IMAGE, "timm")
    with pytest.raises(ValueError, match=f"not those of ViViT or a ViT: {model}"):
        convert.load_model({**flat, name: np.zeros(shape, np.float32)}, num_heads=2)


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("timm", "patch_embed.proj.weight", r"'patch_embed.proj.weight' has shape \(8, 3, 2, 4, 4\)"),
        ("huggingface", "vit.embeddings.cls_token", "encoder/class_token .*nothing in the source fills it"),
    ],
)
def test_tubelets_of_timm_and_a_missing_class_token_are_refused(format, name, message):
    _, flat = arrays(IMAGE, format)
    del flat[name]
    if format == "timm":
        flat[name] = np.zeros((8, 3, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        convert.load_model(flat, num_heads=2)


def test_layer_scale_of_timm_is_folded_in():
    params, flat = arrays(IMAGE, "timm")
    rng, layers = np.random.default_rng(0), params["encoder"]["layers"]
    gamma = rng.normal(size=(2, 2, 8)).astype(np.float32)  # layer, branch
    scaled = {f"blocks.{layer}.ls{branch + 1}.gamma": gamma[layer, branch] for layer in (0, 1) for branch in (0, 1)}
    _, loaded = convert.load_model(flat | scaled, num_heads=2)
    for branch, (part, leaf) in enumerate((("attention", "out"), ("mlp", "dense_out"))):
        expected, found = layers[part][leaf], loaded["encoder"]["layers"][part][leaf]
        ones = (1,) * (expected["kernel"].ndim - 2)
        np.testing.assert_allclose(
            found["kernel"], expected["kernel"] * gamma[:, branch].reshape(2, *ones, 8), rtol=1e-6
        )
        np.testing.assert_allclose(found["bias"], expected["bias"] * gamma[:, branch], rtol=1e-6)


def test_norm_after_pooling_belongs_to_the_classifier():
    params, flat = arrays(IMAGE, "timm")
    flat = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: x for name, x in flat.items()}
    with pytest.raises(ConversionError, match=r"fc_norm\.: the norm after averaging the tokens, which belongs to the"):
        convert.load_model(flat, num_heads=2)
    result = convert.initialise(flat, VIDEO, InitFrom(num_heads=2))
    mlp = params["encoder"]["layers"]["mlp"]["dense_in"]["kernel"]
    np.testing.assert_array_equal(result.params["encoder"]["layers"]["mlp"]["dense_in"]["kernel"], mlp)
    np.testing.assert_array_equal(result.params["encoder"]["norm"]["scale"], np.ones(8))
    assert not result.params["head"]["kernel"].any()
    assert "head.bias, head.weight of the weights not used" in "\n".join(result.report.warnings)


@pytest.mark.parametrize("layout", ["checkpoint_5", "item", "items"])
def test_orbax_folder_of_another_program(layout, tmp_path):
    config = small_config()
    params, flat = arrays(config, "scenic")
    tree = traverse_util.unflatten_dict(flat, sep="/")
    state = {"params": tree, "opt_state": [{"mu": tree}], "step": np.int32(5)}
    if layout == "checkpoint_5":
        with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
            for step, saved in ((5, state), (4, {"params": {"other": np.zeros(1)}})):
                checkpointer.save(tmp_path / "run" / f"checkpoint_{step}", saved)
                checkpointer.wait_until_finished()
    else:
        items = {name: ocp.args.StandardSave(part) for name, part in state.items() if name != "step"}
        args = ocp.args.Composite(**items) if layout == "items" else ocp.args.StandardSave(state)
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            manager.save(5, args=args)
    loaded_config, loaded = convert.load_model(tmp_path / "run", like=config)
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
