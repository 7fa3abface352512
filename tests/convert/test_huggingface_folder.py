"""What a folder of Hugging Face says beside the weights: class names and the image processor."""

import json
import shutil

import numpy as np
import pytest

from tests.helpers.small_models import random_params, small_config
from vivit_jax import convert
from vivit_jax.convert import processor, writers
from vivit_jax.convert.containers.open import _read_configs
from vivit_jax.models import ViViTConfig

CLASSES = ["riding a bike", "abseiling", "air drumming"]
VIVIT = {"image_processor_type": "VivitImageProcessor"}
PLAIN = {"image_processor_type": "ViTImageProcessor"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(config, parameters, folder) of a ViViT with class names."""
    config = small_config(num_classes=3, image_size=(8, 8))
    params = random_params(config, dtype=np.float32)
    path = tmp_path_factory.mktemp("hf") / "vivit"
    convert.save_params(params, path, "huggingface", config, {"label": CLASSES})
    return config, params, path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_classes_of_id2label_are_put_into_the_order_of_the_data(folder):
    config, params, path = folder
    names = {"label": ["Air_Drumming", "riding_a_bike", "abseiling"]}
    result = convert.initialise(path, config, class_names=names)
    np.testing.assert_array_equal(result.params["head"]["kernel"], params["head"]["kernel"][:, [2, 0, 1]])
    assert "2 are spelled otherwise: 'Air_Drumming' is 'air drumming' in the weights" in "".join(result.report.warnings)
    lost = convert.initialise(path, config, class_names={"label": ["a", "b", "c"]})
    assert not lost.params["head"]["kernel"].any()
    assert "classifier head of 3 classes ('riding a bike', 'abseiling', 'air drumming')" in lost.report.warnings[0]


def test_classes_of_a_published_config(shared, tmp_path):
    """Whatever the case of their names; of an older config in `label2id` alone."""
    written = json.loads((shared / "cases" / "hf30" / "config.json").read_text())
    config = small_config(
        **{name: written[name] for name in ("hidden_size", "num_frames", "tubelet_size")},
        **{"num_heads": 4, "num_layers": 2, "mlp_dim": 64, "num_classes": 10, "image_size": (32, 32)},
    )
    params = random_params(config, dtype=np.float32)
    convert.save_params(params, tmp_path / "hf", "huggingface", config)
    names = list(written["id2label"].values())
    shouted = {number: name.upper().replace(" ", "_") for number, name in written["id2label"].items()}
    without = {name: value for name, value in written.items() if name != "id2label"}
    for content in (written, written | {"id2label": shouted}, without):
        write(tmp_path / "hf", "config.json", content)
        result = convert.initialise(tmp_path / "hf", config, class_names={"label": names[::-1]})
        np.testing.assert_array_equal(result.params["head"]["kernel"], params["head"]["kernel"][:, ::-1])


def test_weights_without_some_of_the_layers_are_refused(folder, tmp_path):
    shutil.copytree(folder[2], tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    write(tmp_path / "hf", "config.json", written | {"num_hidden_layers": 12})
    with pytest.raises(ValueError, match=r"config\.json says num_hidden_layers=12, but the weights have 2"):
        convert.load_model(tmp_path / "hf")


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        (VIVIT, "[-3, 1]"),  # the defaults of the class
        (
            {**VIVIT, "rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False, "image_mean": [0.5] * 3},
            "[-1, 1]",
        ),
        ({**VIVIT, "offset": False, "rescale_factor": 1 / 255, "do_normalize": False}, "[0, 1]"),
        ({"video_processor_type": "VivitVideoProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "[-3, 1]"),
        ({**PLAIN, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "[-1, 1]"),
        ({**PLAIN, "image_mean": 0.0, "image_std": 1.0, "size": 224}, "[0, 1]"),
    ],
)
def test_image_processors_are_understood(fields, pixels):
    read = processor.read({"preprocessor": fields}, 3)
    assert str(read) == pixels
    assert read.is_ours == (pixels == "[-1, 1]")


def test_pixels_of_timms_own_config_are_found(tmp_path):
    """timm's folders on the hub have no image processor: mean and standard deviation are in `pretrained_cfg`."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    write(tmp_path, "config.json", {"architecture": "vit_tiny", "pretrained_cfg": {"mean": mean, "std": std}})
    found = processor.read(_read_configs(tmp_path), 3)
    np.testing.assert_allclose((found.mean, found.std), (mean, std))


def test_patches_that_are_not_square_are_exported_as_a_pair():
    config = ViViTConfig(hidden_size=8, num_heads=2, num_layers=1, mlp_dim=8, num_frames=1, tubelet_size=(1, 8, 4))
    assert writers.huggingface_config(config)["patch_size"] == [8, 4]


def test_image_processor_of_a_vivit_is_named_and_can_be_folded_in(folder, tmp_path):
    config, params, _path = folder
    convert.save_params(params, tmp_path / "copy", "huggingface", config)
    write(tmp_path / "copy", "preprocessor_config.json", VIVIT)
    result = convert.initialise(tmp_path / "copy", config)
    warning = next(line for line in result.report.warnings if "processor" in line)
    assert "scales pixels to [-3, 1]; it is ignored, since our models take [-1, 1]" in warning
    assert "--config.init_from.pixel_mean=0.75,0.75,0.75 --config.init_from.pixel_std=0.25,0.25,0.25" in warning
    # Folded: the same tokens from our pixels v as theirs from (x - 0.75) / 0.25, x = (v + 1) / 2.
    options = convert.InitFrom(pixel_mean=(0.75,) * 3, pixel_std=(0.25,) * 3)
    folded = convert.initialise(tmp_path / "copy", config, options)
    assert not any("processor" in line for line in folded.report.warnings)
    v = np.random.default_rng(0).uniform(-1, 1, (*config.tubelet_size, 3))

    def token(params, pixels):
        kernel, bias = (np.asarray(params["tokenizer"][name], np.float64) for name in ("kernel", "bias"))
        return (pixels[..., None] * kernel).sum((0, 1, 2, 3)) + bias

    np.testing.assert_allclose(
        token(folded.params, v), token(params, ((v + 1) / 2 - 0.75) / 0.25), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(result.params["tokenizer"]["kernel"], params["tokenizer"]["kernel"])
