"""Live parity with Hugging Face and timm: logits and all gradients of random models.

Needs the extra `[parity]`, and is skipped without it. All comparisons are in float64, at sizes drawn at random.
"""

import copy
import dataclasses
import functools
import importlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from tests.helpers.small_models import random_params, random_video, small_config
from vivit_jax.convert import InitFrom, initialise, load_model, load_params, save_params
from vivit_jax.data.host_tf import tf
from vivit_jax.data.pipeline import clips
from vivit_jax.data.records import reader
from vivit_jax.data.selection import sampling
from vivit_jax.models import ViViT
from vivit_jax.train_step import normalise

torch = pytest.importorskip("torch", reason="live parity needs the extra [parity]")
transformers = pytest.importorskip("transformers", reason="live parity needs the extra [parity]")
CLASSES, BATCH = 7, 3
RUN_ONCE = {"xla_backend_optimization_level": 0}  # compiles in two thirds of the time


def declare_torchvision_operators():
    """Makes torchvision importable beside a PyTorch that it was not built for.

    With another build of PyTorch its operators are not loaded, and the import fails where it first refers to them.
    Declaring them is enough: nothing here calls them.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass  # Hugging Face does without


declare_torchvision_operators()


def noisy(model, seed=0):
    """Returns the model in float64 with noise on all leaves, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.add_(0.3 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype))
    return model


def draw_image(rng):
    """Draws (height, width) of a patch and of an image; neither the patch nor the grid is a square."""
    patch, grid = rng.permutation([2, 3, 4, 5])[:2], rng.permutation([1, 2, 3, 4])[:2]
    return patch.tolist(), (patch * grid).tolist()


def draw_sizes(rng):
    """Draws the sizes that Hugging Face's ViViT and ViT both have."""
    heads = int(rng.integers(1, 5))
    return {
        "hidden_size": heads * int(rng.integers(4, 9)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 4)),
        "intermediate_size": int(rng.integers(5, 40)),
        "layer_norm_eps": 10.0 ** -int(rng.integers(3, 13)),
        "num_channels": int(rng.integers(1, 5)),
        "num_labels": CLASSES,
        "attn_implementation": "sdpa",  # the eager one takes its softmax in float32
    }


def draw_vivit(seed, t=2, **fields):
    """Draws a config of Hugging Face's ViViT with tubelets of t frames."""
    rng = np.random.default_rng(seed)
    patch, image = draw_image(rng)
    fields = {"tubelet_size": [t, *patch], "image_size": image, "num_frames": t * int(rng.integers(1, 4)), **fields}
    return transformers.VivitConfig(**draw_sizes(rng), **fields)


def draw_vit(seed, **fields):
    """Draws a config of Hugging Face's ViT."""
    rng = np.random.default_rng(seed)
    patch, image = draw_image(rng)
    return transformers.ViTConfig(**draw_sizes(rng), **{"patch_size": patch, "image_size": image, **fields})


def load_in_float64(source, **hints):
    """Returns (config, parameters), both in float64."""
    config = dataclasses.replace(load_model(source, **hints)[0], dtype="float64")
    return config, load_params(source, config=config)


def ours(config, params, video, **kwargs):
    """Returns the output of our model in float64."""
    with jax.enable_x64(True):
        model = ViViT(dataclasses.replace(config, dtype="float64"))
        call = jax.jit(functools.partial(model.apply, **kwargs), compiler_options=RUN_ONCE)
        return jax.tree.map(np.asarray, call({"params": params}, np.asarray(video, np.float64)))


def pixels_of(video, config):
    """Converts clips [B, T, H, W, C] to [B, T, C, H, W], or [B, C, H, W] for an image model."""
    pixels = torch.tensor(np.moveaxis(np.asarray(video, np.float64), -1, 2))
    return pixels[:, 0] if config.tokenizer == "uniform_frames" else pixels


def logits_of(model, pixels):
    """Returns the logits of a model of timm, or of Hugging Face, which wraps them."""
    out = model(pixels)
    return out if isinstance(out, torch.Tensor) else out.logits


def assert_close(actual, expected, what):
    """Asserts a difference within 1e-9 of the largest expected entry."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    error, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    assert error <= 1e-9 * scale, f"{what}: differs by {error} of {scale}"


def assert_parity(model, config, params, format, without_slot=False):
    """Compares logits, the gradient of every leaf and that of the clip.

    Args:
      model: of Hugging Face or timm.
      config, params: our model, float64.
      format: of the names of the model's parameters.
      without_slot: the model's class token has no position; ours has one at zero.
    """
    video, labels = random_video(config, BATCH), np.random.default_rng(0).integers(0, CLASSES, BATCH)
    pixels = pixels_of(video, config).requires_grad_()
    logits = logits_of(model, pixels)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    # A gradient has the names and the shapes of the weights.
    expected = load_params({name: leaf.grad.numpy() for name, leaf in model.named_parameters()}, format, config=config)
    of_pixels = pixels.grad.numpy()[:, None] if config.tokenizer == "uniform_frames" else pixels.grad.numpy()

    def loss(params, video):
        actual = ViViT(config).apply({"params": params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(actual, labels).mean(), actual

    with jax.enable_x64(True):
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=RUN_ONCE)
        (of_params, of_video), actual = gradients(params, video)
    assert actual.dtype == np.float64
    assert_close(actual, logits.detach(), "logits")
    assert_close(of_video, np.moveaxis(of_pixels, 2, -1), "clip")

    actual, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (of_params, expected))
    assert set(actual) == set(expected)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for name, leaf in expected.items():
        if name.endswith("key/bias"):
            # It shifts all logits of a query equally, which the softmax ignores: only rounding errors are left.
            assert max(np.abs(leaf).max(), np.abs(actual[name]).max()) < 1e-13 * largest, name
        elif name.endswith("position_embedding") and without_slot:
            assert_close(actual[name][1:], leaf[1:], name)
        else:
            assert_close(actual[name], leaf, name)


@pytest.mark.parametrize(
    ("seed", "fields"),
    [
        (0, {"t": 2, "hidden_act": "gelu_fast"}),
        (1, {"t": 3, "hidden_act": "gelu"}),
        (2, {"t": 1, "hidden_act": "gelu_pytorch_tanh", "qkv_bias": False}),
    ],
)
def test_hugging_face_vivit_logits_and_gradients(seed, fields, tmp_path):
    model = noisy(transformers.VivitForVideoClassification(draw_vivit(seed, **fields)), seed)
    model.save_pretrained(tmp_path)
    config, params = load_in_float64(tmp_path)
    assert (config.video_shape[0], list(config.image_shape)) == (model.config.num_frames, model.config.image_size)
    assert_parity(model, config, params, "huggingface")


@pytest.mark.parametrize(("seed", "fields"), [(3, {}), (4, {"qkv_bias": False}), (5, {"hidden_act": "gelu_new"})])
def test_hugging_face_vit_logits_and_gradients(seed, fields, tmp_path):
    model = noisy(transformers.ViTForImageClassification(draw_vit(seed, **fields)), seed)
    model.save_pretrained(tmp_path)
    assert_parity(model, *load_in_float64(tmp_path), "huggingface")


def draw_timm(seed, **fields):
    """Draws (timm's ViT, the sizes that its state dict does not show)."""
    timm = pytest.importorskip("timm", reason="live parity with timm needs the extra [parity]")
    rng = np.random.default_rng(seed)
    patch, image = draw_image(rng)
    heads, ratio = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    model = timm.models.VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=heads * int(rng.integers(4, 9)), num_heads=heads,
        depth=int(rng.integers(1, 4)), mlp_ratio=ratio, in_chans=int(rng.integers(1, 5)), num_classes=CLASSES, **fields,
    )  # fmt: skip
    grid = (image[0] // patch[0], image[1] // patch[1])
    return noisy(model, seed), {"num_heads": heads, "grid": grid}


@pytest.mark.parametrize(
    ("seed", "fields"),
    [
        (6, {}),
        (7, {"no_embed_class": True, "qkv_bias": False}),
        (8, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_timm_logits_and_gradients(seed, fields):
    model, hints = draw_timm(seed, **fields)
    config, params = load_in_float64(model.state_dict(), **hints)
    assert config.classifier == ("token" if fields.get("class_token", True) else "gap")
    assert_parity(model, config, params, "timm", without_slot="no_embed_class" in fields)


def test_timm_layer_scale_folded_into_the_branches():
    model, hints = draw_timm(9, init_values=0.1)
    config, params = load_in_float64(model.state_dict(), **hints)
    video = random_video(config, BATCH)
    with torch.no_grad():
        expected = logits_of(model, pixels_of(video, config))
    assert_close(ours(config, params, video), expected, "logits")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_pool": "avg"}, r"fc_norm\.weight \("),
        ({"global_pool": "map"}, r"attn_pool\.latent \("),
        ({"qk_norm": True}, r"normalised queries and keys \(blocks\.0\.attn\.q_norm\.weight\)"),
        ({"pre_norm": True}, r"CLIP: .* \(norm_pre\.weight\)"),
        ({"reg_tokens": 2, "no_embed_class": True}, r"register tokens.* \(reg_token\)"),
    ],
)
def test_other_timm_architectures_are_refused(fields, message):
    model, hints = draw_timm(9, **fields)
    with pytest.raises(ValueError, match=message):
        load_model(model.state_dict(), **hints)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns (a ViViT in float32, its folder from `save_pretrained`)."""
    model, folder = (
        noisy(transformers.VivitForVideoClassification(draw_vivit(10))).float(),
        tmp_path_factory.mktemp("hf"),
    )
    model.save_pretrained(folder)
    return model, folder


def assert_same(actual, expected):
    """Asserts that two trees are equal to the bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("kind", ["bin", "legacy bin", "shards", "bfloat16"])
def test_hugging_face_file_kinds(saved, kind, tmp_path):
    model, folder = saved
    config, params = load_model(folder)
    if kind == "shards":
        model.save_pretrained(tmp_path, max_shard_size="1KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 3
    elif kind == "bfloat16":
        copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), params)
    else:
        model.config.save_pretrained(tmp_path)
        state, zipped = model.state_dict(), kind == "bin"
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    actual, leaves = load_model(tmp_path)
    assert actual == config
    assert_same(leaves, params)


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("kind", ["VivitModel", "ViTModel"])
def test_hugging_face_models_without_a_head(kind, pooler, tmp_path):
    config = (draw_vivit if kind == "VivitModel" else draw_vit)(11, pooler_output_size=9)
    model = noisy(getattr(transformers, kind)(config, add_pooling_layer=pooler))
    model.save_pretrained(tmp_path)
    config, params = load_in_float64(tmp_path)
    assert (config.num_classes, config.representation_size) == (None, 9 if pooler else None)
    video = random_video(config, BATCH)
    expected = model(pixels_of(video, config))
    actual = ours(config, params, video, features=True)
    assert_close(actual["tokens"], expected.last_hidden_state.detach(), "tokens")
    last = expected.pooler_output if pooler else expected.last_hidden_state[:, 0]
    assert_close(actual["pre_logits"], last.detach(), "pre_logits")


def test_unsupported_pooler_activation_is_refused(tmp_path):
    transformers.ViTModel(draw_vit(15, pooler_act="gelu")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pooler_act='gelu'"):
        load_model(tmp_path)


VIDEO = {"attention": "spatiotemporal", "image_size": (8, 8)}
IMAGE = {"tokenizer": "uniform_frames", "tubelet_size": (1, 4, 4), "num_frames": 1, "image_size": (12, 12)}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("VivitForVideoClassification", VIDEO),
        ("VivitForVideoClassification", {**VIDEO, "activation": "gelu", "qkv_bias": False, "layer_norm_eps": 1e-3}),
        ("ViTForImageClassification", {**IMAGE, "activation": "gelu"}),
        ("ViTForImageClassification", IMAGE),
    ],
)
def test_hugging_face_export_round_trip(kind, fields, tmp_path):
    config = small_config(**fields)
    params = random_params(config, dtype=np.float32)
    labels = [f"class {i}" for i in range(config.num_classes)]
    save_params(params, tmp_path / "out", "huggingface", config, class_names={"label": labels})
    model, report = getattr(transformers, kind).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not any(report.values()), report
    assert list(model.config.id2label.values()) == labels
    video = random_video(config, BATCH)
    logits = logits_of(model.double(), pixels_of(video, config))
    assert_close(ours(config, params, video), logits.detach(), "logits")
    # Reading our export and the export of transformers gives the same model and the same bits.
    model.float().save_pretrained(tmp_path / "theirs")
    for folder in ("out", "theirs"):
        again, leaves = load_model(tmp_path / folder)
        assert again == config
        assert_same(leaves, params)


def test_timm_export_round_trip(tmp_path):
    model, hints = draw_timm(12)
    state = model.float().state_dict()
    config, params = load_model(state, **hints)
    save_params(params, tmp_path / "out.safetensors", "timm", config)
    written = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert_same(written, {name: leaf.numpy() for name, leaf in state.items()})


def test_exported_image_processor_matches_evaluation(tmp_path):
    """The processor prepares a video as evaluation does: one central crop, resized alike, in [-1, 1]."""
    config = small_config(image_size=28)
    save_params(random_params(config, dtype=np.float32), tmp_path / "out", "huggingface", config)
    processor = transformers.VivitImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.size["shortest_edge"] == 32

    def both(height, width):
        frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
        spec = sampling.ClipSpec(4, (28, 28), short_side=32)
        rows, columns = sampling.resized(height, width, spec)
        box = sampling.view_crop(rows, columns, spec, 1, 0)
        read = functools.partial(reader.cut, tf.constant(frames), None)
        resized = clips.resized(read, frames.shape[1:3], (rows, columns)).numpy()
        cropped = resized[:, box.top : box.top + 28, box.left : box.left + 28]
        processed = processor(list(frames), return_tensors="np")["pixel_values"]
        return np.moveaxis(processed[0], 1, -1), np.asarray(normalise(cropped))

    processed, expected = both(32, 45)  # nothing to resize
    np.testing.assert_allclose(processed, expected, rtol=0, atol=1e-7)
    for size in ((24, 33), (64, 80)):
        processed, expected = both(*size)
        assert np.abs(processed - expected).max() <= 2.01 / 127.5  # the processor rounds pixel values twice, we once


@pytest.mark.parametrize("embedding", ["central_frame", "filter_inflation"])
def test_single_tubelet_equals_hugging_face_vit(embedding, tmp_path):
    """Section 3.4 on Hugging Face's ViT with its pooler, on a static clip."""
    model = noisy(transformers.ViTModel(draw_vit(13)))
    model.save_pretrained(tmp_path)
    image, _ = load_model(tmp_path)
    config = dataclasses.replace(
        image, tokenizer="tubelet", tubelet_size=(3, *image.tubelet_size[1:]), num_frames=3, dtype="float64"
    )
    converted = initialise(tmp_path, config, InitFrom(embedding=embedding))
    picture = random_video(image, BATCH)
    expected = model(pixels_of(picture, image))
    actual = ours(converted.config, converted.params, np.repeat(picture, 3, axis=1), features=True)
    assert_close(actual["tokens"], expected.last_hidden_state.detach(), "tokens")
    assert_close(actual["pre_logits"], expected.pooler_output.detach(), "pre_logits")


def test_average_pool_baseline_averages_image_logits(tmp_path):
    """Model 2 without temporal layers sees each frame as Hugging Face's ViT does."""
    model = noisy(transformers.ViTForImageClassification(draw_vit(14)))
    model.save_pretrained(tmp_path)
    image, _ = load_model(tmp_path)
    config = dataclasses.replace(
        image, attention="factorised_encoder", temporal_layers=0, num_frames=4, dtype="float64"
    )
    converted = initialise(tmp_path, config, InitFrom(head="keep"))
    video = random_video(config, BATCH)
    frames = [logits_of(model, pixels_of(video[:, i : i + 1], image)) for i in range(4)]
    assert_close(ours(converted.config, converted.params, video), sum(frames).detach() / 4, "logits")
