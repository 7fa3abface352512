"""Evaluation of masked pretraining: the loss of masked tubelets, with the same masks each time."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vivit_jax import distributed, sharding
from vivit_jax.data.selection import subset
from vivit_jax.evaluation import evaluator
from vivit_jax.evaluation.results import Result
from vivit_jax.models import MaskedViViT, inference
from vivit_jax.models.masked import reconstruction
from vivit_jax.train_step import normalise

_SHOWN = 4  # clips of the first batch, as pictures


class MaskedEvaluator:
    """Evaluates parameters on the central clip of each video; arguments and calls as `Evaluator`."""

    def __init__(
        self, model: MaskedViViT, mesh: Any, experiment: Any, split: Any, spec: Any, *, videos: int | None = None
    ):
        self._size, indices = split.num_videos, evaluator.spread_indices(split.num_videos, videos)
        self._split = split if len(indices) == split.num_videos else subset.take(split, indices)
        self._mesh, self._spec, self._experiment = mesh, spec, experiment
        self._model = model = evaluator.for_inference(model, experiment)
        patches = model.config.grid[1] * model.config.grid[2]

        def step(params: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            def noise(index: jax.Array) -> jax.Array:  # of a video, in any batch
                return jax.random.uniform(jax.random.fold_in(jax.random.key(0), index), (patches,))

            out = model.apply({"params": params}, normalise(batch["video"][:, 0]), jax.vmap(noise)(batch["index"]))
            shown = reconstruction(jax.tree.map(lambda x: x[:_SHOWN], out), model.config)
            return {"loss": out["loss"], "mask": batch["mask"], "index": batch["index"], "shown": shown}

        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any, interrupted: Callable[[], bool] = evaluator.never) -> Result:
        """Evaluates all the videos; raises EvaluationInterrupted once `interrupted` returns True after a batch."""
        distributed.beat("evaluation")
        batches = evaluator.open_batches(self._split, self._spec, (1, 1), self._experiment, self._mesh)
        params, fetched, shown = inference.cast_params(params, self._model.config), [], None
        size = self._experiment.evaluation.batch_size
        for out in evaluator.run_batches(self._step, params, batches, self._mesh, size):
            pictures = out.pop("shown")
            shown = jax.device_get(pictures) if shown is None else shown
            fetched.append(jax.device_get(out))
            distributed.beat("evaluation")
            if interrupted():
                batches.close()
                raise evaluator.EvaluationInterrupted
        loss, mask, index = (np.concatenate([out[name] for out in fetched]) for name in ("loss", "mask", "index"))
        if not np.array_equal(np.sort(index[index >= 0]), np.arange(self._split.num_videos)):
            raise RuntimeError(f"evaluation did not see {self._split.num_videos} videos once each; please report this")
        counted = int(mask.sum())
        return Result(
            {"loss": float(loss[mask > 0].mean()) if counted else math.nan},
            {},
            counted=counted,
            unreadable=self._split.num_videos - counted,
            views=(1, 1),
            split_size=self._size,
            dtype=self._model.config.dtype,
            reconstructions=shown[: self._split.num_videos],
        )
