"""ViViTConfig: names, defaults, round trips, and error messages."""

import json

import numpy as np
import pytest

from tests.helpers.small_models import MODELS, small_config
from vivit_jax.models import ViViTConfig


def test_names_and_grid():
    config = ViViTConfig.from_name("ViViT-L/16x2", num_frames=32, image_size=(224, 320))
    assert (config.num_layers, config.hidden_size, config.mlp_dim, config.num_heads) == (24, 1024, 4096, 16)
    assert config.tubelet_size == (2, 16, 16)
    assert config.grid == (16, 14, 20)
    assert config.video_shape == (32, 224, 320, 3)
    for name in ("ViViT-Ti/16x2", "ViViT-S/16x4", "ViViT-B/16x8", "ViViT-L/16x2", "ViViT-H/14x2", "ViViT-B/16x8x2"):
        sizes = {"image_size": 224}
        assert ViViTConfig.from_name(name, **sizes).name == name
    assert small_config().name == "ViViT-custom/4x2"


def test_default_classifier_depends_on_model():
    chosen = [small_config(**fields).classifier for fields in MODELS.values()]
    assert chosen == ["token", "token", "token", "gap", "gap"]


@pytest.mark.parametrize("classes", [5, None, {"verb": 3, "noun": 4}, [("verb", 3), ("noun", 4)]])
def test_round_trip_through_json(classes):
    config = small_config(num_classes=classes, image_size=np.array([8, 12]), tubelet_size=[2, 4, 4])
    again = ViViTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert [n for _, n in config.heads] == {5: [5], None: []}.get(classes if not classes or classes == 5 else 0, [3, 4])


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"attention": "axial"}, ["attention='axial'", "spatiotemporal, factorised_encoder"]),
        ({"tokenizer": "conv"}, ["tokenizer='conv'", "tubelet, uniform_frames"]),
        ({"classifier": "max"}, ["classifier='max'", "token, gap"]),
        ({"activation": "relu"}, ["activation='relu'", "gelu_tanh, gelu"]),
        ({"attention_order": "space"}, ["attention_order='space'", "time_space, space_time"]),
        ({"attention_backend": "cudnn"}, ["attention_backend='cudnn'", "bfloat16, not in float32", "'auto'"]),
        ({"attention_backend": "flash"}, ["attention_backend='flash'", "auto, xla, tiled, cudnn, splash"]),
        ({"dtype": "float16"}, ["dtype='float16'", "bfloat16"]),
        ({"remat": True}, ["remat=True", "none, dots, full"]),
        ({"image_size": 30}, ["image_size's height=30", "tubelet_size's height=4", "28 or 32"]),
        ({"image_size": (8, 3)}, ["image_size's width=3", "use 4"]),
        ({"num_frames": 5}, ["num_frames=5", "tubelet_size's frames=2", "4 or 6"]),
        ({"num_heads": 3}, ["num_heads=3", "hidden_size=8", "1"]),
        ({"attention": "factorised_self_attention", "classifier": "token"}, ["Model 3", "classifier='gap'"]),
        ({"attention": "factorised_dot_product", "classifier": "token"}, ["Model 4", "classifier='gap'"]),
        ({"attention": "factorised_dot_product", "num_heads": 1}, ["num_heads=1 is odd", "even"]),
        ({"attention_logit_cap": 0}, ["attention_logit_cap=0", "(0, inf)", "None"]),
        ({"attention_logit_cap": float("nan")}, ["attention_logit_cap=nan", "(0, inf)", "None"]),
        ({"temporal_layers": -1}, ["temporal_layers=-1", "at least 0"]),
        ({"num_layers": 0}, ["num_layers=0", "at least 1"]),
        ({"num_layers": 2.0}, ["num_layers=2.0", "whole number"]),
        ({"tubelet_size": (2, 4)}, ["tubelet_size=(2, 4)", "3 whole numbers"]),
        ({"tubelet_size": (2, 0, 4)}, ["tubelet_size", "at least 1"]),
        ({"image_size": "224"}, ["image_size='224'", "whole number"]),
        ({"num_classes": 0}, ["num_classes=0", "at least 1"]),
        ({"num_classes": {"verb": 0}}, ["num_classes[verb]=0", "at least 1"]),
        ({"num_classes": {}}, ["one head or more"]),
        ({"num_classes": {"verb/noun": 3}}, ["verb/noun", "letters"]),
        ({"dropout_rate": 1.0}, ["dropout_rate=1.0", "[0, 1)"]),
        ({"attention_dropout_rate": -0.1}, ["attention_dropout_rate=-0.1", "[0, 1)"]),
        ({"stochastic_depth_rate": 2}, ["stochastic_depth_rate=2.0", "[0, 1)"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps=0.0", "1e-6"]),
        ({"temporal_position_std": -1.0}, ["temporal_position_std=-1.0", "[0, inf)"]),
        ({"representation_size": 0}, ["representation_size=0", "at least 1"]),
    ],
)
def test_bad_values_are_rejected_with_allowed_ones(fields, parts):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        small_config(**fields)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("name", ["ViViT-B", "ViViT-XL/16x2", "ViT-B/16", "ViViT-B/16x0"])
def test_bad_names_are_rejected(name):
    with pytest.raises(ValueError, match=r"ViViT-B/16x2|at least 1"):
        ViViTConfig.from_name(name)


def test_unknown_fields_are_rejected():
    with pytest.raises(ValueError, match="no field hidden; its fields: hidden_size"):
        ViViTConfig.from_name("ViViT-B/16x2", hidden=4)
