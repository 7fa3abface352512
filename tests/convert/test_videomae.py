"""Live parity with Hugging Face's VideoMAE in float64: classifier, encoder, masked pretraining; needs `[parity]`."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from tests.convert.test_parity import assert_close, load_in_float64, noisy, ours, pixels_of, torch, transformers
from tests.helpers.small_models import random_video
from vivit_jax.convert import ConversionError, InitFrom, initialise, load_model, load_params, save_params
from vivit_jax.models import MaskedViViT, PretrainConfig, ViViT

SIZES = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 20}
SIZES |= {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 2}
SIZES |= {"decoder_intermediate_size": 64, "image_size": (12, 8), "patch_size": 4, "num_frames": 6, "tubelet_size": 2}
SIZES |= {"layer_norm_eps": 1e-5, "num_labels": 7, "attn_implementation": "sdpa"}


def hugging_face(kind, **fields):
    """A random model of one of VideoMAE's classes."""
    return noisy(getattr(transformers, kind)(transformers.VideoMAEConfig(**SIZES | fields)))


@pytest.mark.parametrize("fields", [{}, {"qv_bias": False, "hidden_act": "gelu_new"}])
def test_classifier_logits_and_gradients(fields, tmp_path):
    model = hugging_face("VideoMAEForVideoClassification", **fields)
    model.save_pretrained(tmp_path)
    config, params = load_in_float64(tmp_path)
    assert config.pool_norm
    with pytest.raises(ValueError, match="read, not written"):
        save_params(params, tmp_path / "out", "videomae", config)
    assert config.qkv_bias == (not fields)
    video = random_video(config, 3)
    pixels = pixels_of(video, config).requires_grad_()
    logits = model(pixels).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    grads = {name: leaf.grad.numpy() for name, leaf in model.named_parameters()}
    expected = load_params(grads, "videomae", config=config)

    def loss(params, video):
        actual = ViViT(config).apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(actual, np.array([0, 3, 6])).mean(), actual

    with jax.enable_x64(True):
        (of_params, of_video), actual = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, video)
    assert_close(actual, logits.detach(), "logits")
    assert_close(of_video, np.moveaxis(pixels.grad.numpy(), 2, -1), "clip")
    for tree in (of_params, expected):  # positions are constants there; a key's bias has no gradient
        del tree["encoder"]["position_embedding"], tree["encoder"]["layers"]["attention"]["key"]
    jax.tree.map(lambda one, two: assert_close(one, two, "gradient"), of_params, expected)


@pytest.mark.parametrize("old_names", [True, False])
def test_encoder_without_a_head(old_names, tmp_path):
    model = hugging_face("VideoMAEModel", use_mean_pooling=False)
    names = {name: leaf.numpy() for name, leaf in model.state_dict().items()}
    if old_names:  # of the published files
        biases = (("query.bias", "q_bias"), ("value.bias", "v_bias"))
        for new, old in biases:
            names = {f"videomae.{n.removeprefix('videomae.').replace(new, old)}": leaf for n, leaf in names.items()}
        assert sum("q_bias" in name for name in names) == 2
    config, params = load_in_float64(names, grid=(3, 3, 2), num_heads=3)
    config = dataclasses.replace(config, layer_norm_eps=1e-5)
    video = random_video(config, 2)
    expected = model(pixels_of(video, config)).last_hidden_state.detach()
    assert_close(ours(config, params, video, features=True)["tokens"], expected, "tokens")


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_masked_pretraining(norm_pix_loss):
    """Encoder and decoder of VideoMAEForPreTraining in ours: the same loss with the same masks."""
    model = hugging_face("VideoMAEForPreTraining", use_mean_pooling=False, norm_pix_loss=norm_pix_loss)
    names = {name: leaf.numpy() for name, leaf in model.state_dict().items()}
    config, params = load_in_float64(names, grid=(3, 3, 2), num_heads=3)
    config = dataclasses.replace(config, layer_norm_eps=1e-5)
    decoder = {
        name.replace("decoder.decoder_layers.", "encoder.layer.").replace("decoder.norm.", "layernorm."): leaf
        for name, leaf in names.items()
        if name.startswith(("decoder.decoder_layers.", "decoder.norm."))
    }
    embedding = "embeddings.patch_embeddings.projection"  # only for its shape
    decoder |= {f"{embedding}.weight": np.zeros((16, 3, 2, 4, 4)), f"{embedding}.bias": np.zeros(16)}
    _, decoder = load_in_float64(decoder, grid=(3, 3, 2), num_heads=2)
    params["decoder"] = {
        "encoder": decoder["encoder"],
        "embed": {"kernel": names["encoder_to_decoder.weight"].T},
        "mask_token": names["mask_token"][0, 0],
        "pixels": {"kernel": names["decoder.head.weight"].T, "bias": names["decoder.head.bias"]},
    }
    pretrain = PretrainConfig(0.7, decoder_layers=2, decoder_size=16, normalise_pixels=norm_pix_loss)
    assert pretrain.decoder(config).num_heads == 2

    noise = np.random.default_rng(0).random((3, 6))
    video = np.random.default_rng(1).uniform(0, 1, (3, *config.video_shape))  # Hugging Face undoes ImageNet's scaling
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    kernel, embedding = params["tokenizer"]["kernel"], params["tokenizer"]
    scale = 0.5 / std  # (x - mean) / std of our y = 2 x - 1 is y scale + (0.5 - mean) / std
    bias = embedding["bias"] + ((0.5 - mean) / std) @ kernel.sum(axis=(0, 1, 2))
    params["tokenizer"] = {"kernel": kernel * scale[:, None], "bias": bias}
    with jax.enable_x64(True):
        out = MaskedViViT(config, pretrain).apply({"params": params}, 2 * video - 1, noise)
    masked = torch.tensor(np.tile(np.asarray(out["masked"]), (1, 3)))
    expected = model(pixels_of((video - mean) / std, config), bool_masked_pos=masked).loss
    # Its constants of ImageNet are float32.
    assert np.mean(np.asarray(out["loss"])) == pytest.approx(expected.item(), rel=1e-6)


def test_training_starts_from_the_weights(tmp_path):
    hugging_face("VideoMAEForVideoClassification").save_pretrained(tmp_path)
    processor = {"image_processor_type": "VideoMAEImageProcessor", "do_rescale": True, "do_normalize": True}
    processor |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = load_model(tmp_path)[0]
    for fields, inherited in (({"num_classes": 3}, True), ({"num_classes": 3, "classifier": "token"}, False)):
        target = dataclasses.replace(source, pool_norm=False, activation="gelu_tanh", **fields)
        started = initialise(tmp_path, target, InitFrom(head="reinit"))
        assert started.config.pool_norm == inherited
        assert started.config.activation == "gelu"
        assert "pixels' mean (0.485, 0.456, 0.406)" in str(started.report)
    # Another size, from a model that ends without a LayerNorm.
    hugging_face("VideoMAEForPreTraining").save_pretrained(tmp_path / "pretrained")
    target = dataclasses.replace(target, image_size=(16, 8), attention="factorised_encoder")
    report = initialise(tmp_path / "pretrained", target).report
    assert "from 3 x 2 to 4 x 2, linear" in str(report)
    assert {entry.name for entry in report.entries if entry.name.startswith("spatial_encoder/norm")} <= {
        entry.name for entry in report.entries if entry.outcome == "initialised"
    }


def test_classifier_of_the_first_tubelet_is_refused(tmp_path):
    hugging_face("VideoMAEForVideoClassification", use_mean_pooling=False).save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="the classifier of the first tubelet instead of the average"):
        load_model(tmp_path)
