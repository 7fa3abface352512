"""The formats of an exported model; each writer makes the folder."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy
from jax import export

from vivit_jax.config.preprocessing import Preprocessing
from vivit_jax.convert import save_params
from vivit_jax.data import host_tf
from vivit_jax.models import ViViT, ViViTConfig
from vivit_jax.train_step import as_heads, normalise


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A model to export."""

    config: ViViTConfig
    weights: Mapping[str, np.ndarray]  # the parameters; '/' joins their names
    preprocessing: Preprocessing
    info: Mapping[str, Any]
    json: str  # `info` as text

    def logits(self, weights: Mapping[str, jax.Array], frames: jax.Array) -> dict[str, jax.Array]:
        """Returns {head: float32 [B, C]} of clips uint8 [B, T, H, W, 3] at the model's input size."""
        params = flax.traverse_util.unflatten_dict(dict(weights), sep="/")
        return as_heads(ViViT(self.config).apply({"params": params}, normalise(frames), train=False))

    def exported(self) -> export.Exported:
        """Returns `logits` for all platforms and any number of clips."""
        weights = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in self.weights.items()}
        frames = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *self.config.video_shape), np.uint8)
        return export.export(jax.jit(self.logits, keep_unused=True), platforms=("cpu", "cuda", "tpu"))(weights, frames)


def write_stablehlo(model: Shipped, folder: Path) -> None:
    """Writes `model.stablehlo`, serialized by `jax.export`, and `weights.safetensors`, its first argument.

    Within the module, weights would triple memory and time of its compilation (ViT-B: 4.4 GB, 14 s) and end at 2 GB.
    """
    folder.mkdir()
    (folder / "model.stablehlo").write_bytes(model.exported().serialize())
    safetensors.numpy.save_file(dict(model.weights), folder / "weights.safetensors")


def write_savedmodel(model: Shipped, folder: Path) -> None:
    """Writes a TensorFlow SavedModel with the signatures `serving_default`, `video`, `labels` and `info`.

    It calls the module of `jax.export` as jax2tf does, in an older StableHLO: TensorFlow 2.21 cannot read jax 0.12's.
    """
    tf = host_tf.load()
    from jax.extend.mlir.dialects import stablehlo
    from tensorflow.compiler.tf2xla.python import xla as tf_xla

    from vivit_jax.data.pipeline import clips as pipeline
    from vivit_jax.data.records.reader import memory_reader

    exported, spec, labels = model.exported(), model.preprocessing.clip, model.info["labels"]
    code = stablehlo.serialize_portable_artifact_str(exported.mlir_module(), stablehlo.get_minimum_version())
    module = tf.Module()
    module.weights = [tf.Variable(leaf, name=name) for name, leaf in sorted(model.weights.items())]

    def logits(clips: Any) -> dict[str, Any]:
        outputs = tf_xla.call_module(
            [*module.weights, clips],
            version=exported.calling_convention_version,
            module=code,
            Tout=[tf.float32 for _ in exported.out_avals],
            Sout=[(None, out.shape[1]) for out in exported.out_avals],
            platforms=[platform.upper() for platform in exported.platforms],
        )
        return jax.tree.unflatten(exported.out_tree, outputs)

    def reduced(frames: Any) -> Any:
        """Shrinks frames [N, H, W, 3] to the short side of the records, as prediction does while it decodes."""
        size = tf.cast(tf.shape(frames)[1:3], tf.float64)
        scale = tf.minimum((model.preprocessing.stored_short_side or np.inf) / tf.reduce_min(size), 1.0)
        small = functools.partial(tf.image.resize, frames, tf.cast(tf.round(scale * size), tf.int32), antialias=True)
        return tf.cond(scale < 1, lambda: tf.saturate_cast(tf.round(small(method="bicubic")), tf.uint8), lambda: frames)

    def views(frames: Any, spec: Any, temporal_views: int = 1, spatial_views: int = 1) -> Any:
        frames = reduced(frames)
        count, height, width, _ = tf.unstack(tf.shape(frames, tf.int64))
        return pipeline.views(memory_reader(frames), 0, count, height, width, spec, temporal_views, spatial_views)

    def of_clips(frames: Any) -> dict[str, Any]:
        chosen = dataclasses.replace(spec, stride=1, sampling="random_start")  # each frame is one of the clip
        fits = tf.reduce_all(tf.equal(tf.shape(frames)[2:4], spec.image_size))
        cut = tf.cond(fits, lambda: frames, lambda: tf.map_fn(lambda clip: views(clip, chosen)[0], frames))
        return logits(tf.ensure_shape(cut, [None, *model.config.video_shape]))

    def of_video(frames: Any) -> dict[str, Any]:
        clips, signature = views(frames, spec, **model.info["views"]), {h: tf.TensorSpec([1, None]) for h in labels}
        scores = tf.map_fn(lambda x: logits(x[None]), clips, parallel_iterations=1, fn_output_signature=signature)
        return {head: tf.reduce_mean(of_views, axis=0) for head, of_views in scores.items()}

    signatures = {
        "serving_default": (of_clips, [tf.TensorSpec([None, spec.num_frames, None, None, 3], tf.uint8, "frames")]),
        "video": (of_video, [tf.TensorSpec([None, None, None, 3], tf.uint8, "frames")]),
        "labels": (lambda: {head: tf.constant(names) for head, names in labels.items()}, []),
        "info": (lambda: {"json": tf.constant(model.json)}, []),
    }
    tf.saved_model.save(module, str(folder), {n: tf.function(*s, autograph=False) for n, s in signatures.items()})


def write_huggingface(model: Shipped, folder: Path) -> None:
    """Writes a folder for `VivitForVideoClassification.from_pretrained`; ValueError where it is not Model 1."""
    params, more = flax.traverse_util.unflatten_dict(dict(model.weights), sep="/"), model.preprocessing.to_dict()
    save_params(params, folder, "huggingface", model.config, model.info["labels"], preprocessing=more)


FORMATS = {"stablehlo": write_stablehlo, "savedmodel": write_savedmodel, "huggingface": write_huggingface}
