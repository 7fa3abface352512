"""Masked pretraining: loss, targets and masks against NumPy; the encoder against ViViT on the visible patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.models import MaskedViViT, PretrainConfig, ViViT, ViViTConfig, attention
from vivit_jax.models.blocks import Encoder
from vivit_jax.models.config import ATTENTIONS
from vivit_jax.models.masked import reconstruction

FIELDS = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "mlp_dim": 24, "num_frames": 6, "dtype": "float64"}
FIELDS |= {"tubelet_size": (2, 4, 5), "image_size": (12, 20), "temporal_layers": 0, "num_classes": None}
PRETRAIN = PretrainConfig(mask_ratio=0.5, decoder_layers=1)


def model_and_outputs(config, noise, pretrain=PRETRAIN, **options):
    """(model, its random parameters, clips [3, T, H, W, C], outputs)"""
    video = jax.random.uniform(jax.random.key(0), (3, *config.video_shape), minval=-1, dtype=jnp.float64)
    model = MaskedViViT(config, pretrain)
    params = model.init(jax.random.key(1), video)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    return model, params, video, model.apply({"params": params}, video, noise, **options)


@pytest.mark.parametrize(
    ("tokenizer", "normalise"),
    [
        ("tubelet", True),
        ("uniform_frames", False),
        pytest.param("tubelet", False, marks=pytest.mark.slow),
        pytest.param("uniform_frames", True, marks=pytest.mark.slow),
    ],
)
def test_loss_and_masks_agree_with_numpy(tokenizer, normalise):
    with jax.enable_x64():
        config = ViViTConfig(**FIELDS, tokenizer=tokenizer)
        noise = np.random.default_rng(0).random((3, 12))
        pretrain = dataclasses.replace(PRETRAIN, mask_ratio=0.8, normalise_pixels=normalise)
        _, _, video, out = model_and_outputs(config, noise, pretrain)
        pictures = np.asarray(reconstruction(out, config))
    video, (t, h, w) = 0.5 + 0.5 * np.asarray(video), config.tubelet_size
    predicted, masked = np.asarray(out["predicted"]), np.asarray(out["masked"])
    assert masked.sum(axis=1).tolist() == [9, 9, 9], "9 of 12 patches, 0.8 rounded down"
    for clip in range(3):
        errors = []
        for patch in range(12):
            # Tube masking: one mask for all times; those with the smallest noise are visible.
            assert masked[clip, patch] == ((noise[clip] < noise[clip, patch]).sum() >= 3)
            row, column = divmod(patch, 4)
            for time in range(3):
                frames = slice(time * t, time * t + t) if tokenizer == "tubelet" else [[2, 3, 4][time]]
                pixels = video[clip, frames, row * h : row * h + h, column * w : column * w + w].reshape(-1, 3)
                np.testing.assert_allclose(out["pixels"][clip, time, patch], pixels, atol=1e-12)
                reconstructed = predicted[clip, time, patch]
                if normalise:  # VideoMAE's: each channel of each tubelet, with the unbiased deviation
                    std = pixels.std(axis=0, ddof=1) + 1e-6
                    pixels, reconstructed = (pixels - pixels.mean(0)) / std, (reconstructed - pixels.mean(0)) / std
                if masked[clip, patch]:
                    errors.append(np.mean((pixels - reconstructed) ** 2))
        assert out["loss"][clip] == pytest.approx(np.mean(errors), rel=1e-10)
    first = [0, 2, 4] if tokenizer == "tubelet" else [2, 3, 4]
    np.testing.assert_array_equal(pictures[:, 0], np.round(255 * video[:, first]))


@pytest.mark.parametrize(
    ("attention", "classifier"),
    [
        ("spatiotemporal", None),
        *((attention, "gap") for attention in ATTENTIONS),
        *(pytest.param(attention, None, marks=pytest.mark.slow) for attention in ATTENTIONS if attention[0] == "f"),
    ],
)
def test_encoder_sees_the_visible_patches_as_a_smaller_clip(attention, classifier):
    """The left half of each frame is visible: the encoder's output is that of ViViT on clips of the left half."""
    left = np.tile([True, True, False, False], 3)
    with jax.enable_x64():
        config = ViViTConfig(**FIELDS, attention=attention, classifier=classifier)
        options = {"capture_intermediates": lambda module, _: isinstance(module, Encoder), "mutable": ["intermediates"]}
        noise = np.stack([np.where(left, 0.0, 1.0) + np.arange(12) / 100] * 3)
        _, params, video, (_, state) = model_and_outputs(config, noise, **options)
        name = "spatial_encoder" if attention == "factorised_encoder" else "encoder"
        (tokens,) = state["intermediates"][name]["__call__"]

        params = {part: params[part] for part in (name, "tokenizer")}
        positions = params[name]["position_embedding"]
        token = len(positions) % 12  # one class token, or none
        kept = np.flatnonzero(np.concatenate([[True] * token, *[left] * (len(positions) // 12)]))
        params = {**params, name: {**params[name], "position_embedding": positions[kept]}}
        small = ViViT(dataclasses.replace(config, image_size=(12, 10)))
        expected = small.apply({"params": params}, video[..., :10, :], features=True)
        expected = expected["spatial_tokens" if name == "spatial_encoder" else "tokens"]
    np.testing.assert_allclose(tokens.reshape(expected.shape), expected, atol=1e-12)


def test_masked_pixels_reach_neither_encoder_nor_reconstruction():
    with jax.enable_x64():
        noise = np.tile(np.arange(12) / 12, (3, 1))
        config = ViViTConfig(**FIELDS)
        pretrain = dataclasses.replace(PRETRAIN, normalise_pixels=False)
        model, params, video, out = model_and_outputs(config, noise, pretrain)
        changed = model.apply({"params": params}, video.at[:, :, 8:].set(0.5), noise)  # of the masked lower third
        np.testing.assert_array_equal(out["predicted"], changed["predicted"])
        assert (out["loss"] != changed["loss"]).all()
        gradient = jax.grad(lambda v: model.apply({"params": params}, v, noise)["predicted"].sum())(video)
        assert (gradient[:, :, :4] != 0).any(axis=(2, 3, 4)).all()


def test_random_masks_follow_the_key_and_differ_between_clips():
    config = ViViTConfig(**FIELDS | {"dtype": "float32"})
    model, video = MaskedViViT(config, PRETRAIN), jnp.zeros((4, *config.video_shape))
    params = model.init(jax.random.key(0), video)
    masks = [
        np.asarray(model.apply(params, video, train=True, rngs={"dropout": jax.random.key(key)})["masked"])
        for key in (1, 1, 2)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert len(np.unique(masks[0], axis=0)) > 1


def test_decoder_trains_with_the_attention_of_training(monkeypatch):
    """On CPUs `tiled`, which does not store the weights."""
    seen = []
    monkeypatch.setattr(attention, "attention_backend", lambda *options: seen.append(options[2]) or "xla")
    with jax.enable_x64():
        model, params, video, _ = model_and_outputs(ViViTConfig(**FIELDS), np.zeros((3, 12)))
        assert not any(seen)
        seen.clear()
        model.apply({"params": params}, video, np.zeros((3, 12)), train=True)
    assert len(seen) >= 2
    assert all(seen)


@pytest.mark.parametrize(("size", "heads"), [(None, 2), (180, 2), (64, 2), (256, 4)])
def test_decoder_of_model_4_has_an_even_number_of_heads(size, heads):
    config = ViViTConfig.from_name("ViViT-S/16x2", attention="factorised_dot_product")
    pretrain = PretrainConfig(mask_ratio=0.9, decoder_size=size)
    assert pretrain.decoder(config).num_heads == heads
    assert pretrain.decoder(dataclasses.replace(config, attention="spatiotemporal")).num_heads == (size or 192) // 64
    with pytest.raises(ValueError, match="decoder_size=63 is odd"):
        PretrainConfig(mask_ratio=0.9, decoder_size=63).decoder(config)


def test_ratios_that_mask_nothing_are_refused():
    with pytest.raises(ValueError, match=r"mask_ratio=0.05 masks none of the 12 patches"):
        PretrainConfig(mask_ratio=0.05).visible(ViViTConfig(**FIELDS | {"dtype": "float32"}))
    with pytest.raises(ValueError, match=r"pretrain.mask_ratio=1.0 must lie in \[0, 1\)"):
        PretrainConfig(mask_ratio=1.0)
