"""Repeats a failed step from its dump, on any devices, without the data: which clip and layer went wrong first."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import traverse_util

from vivit_jax import checkpoint as checkpointing
from vivit_jax import sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.train import compiled_step, initialize, skipped_steps
from vivit_jax.train.setup import TrainSetup
from vivit_jax.train_step import as_heads, normalise, step_key
from vivit_jax.train_step.gradients import loss_and_gradients
from vivit_jax.train_step.losses import masked_mean
from vivit_jax.train_step.step import augment_batch, batch_loss, trained_leaves
from vivit_jax.utils import storage
from vivit_jax.utils.trees import path_name


def replay(folder: epath.PathLike) -> Iterator[str]:
    """Yields lines about the step in `folder` (`failed_step/`, or its workdir); the last says if it is skipped again.

    Each clip is computed alone too, augmented as in its batch, but with other draws of dropout. Raises OSError,
    ValueError or CheckpointError for a dump that is incomplete or damaged.
    """
    of_workdir = epath.Path(folder) / skipped_steps.FAILED_FOLDER
    folder = of_workdir if of_workdir.is_dir() else epath.Path(folder)
    try:
        facts = json.loads((folder / skipped_steps.STEP_FILE).read_text())
        experiment = Experiment.from_config(facts["config"])
        batch = _read_batch(folder, experiment.batch_size)
    except (KeyError, *storage.NPZ_ERRORS) as error:
        raise ValueError(f"{folder} cannot be replayed: {error}") from error
    with checkpointing.Checkpoints(folder / checkpointing.FOLDER, read_only=True) as checkpoints:
        setup = _set_up(experiment, checkpoints.metadata(facts["step"] - 1))
        with jax.set_mesh(setup.mesh):
            state, _ = checkpoints.restore(setup.program.state, facts["step"] - 1)
            state, placed = initialize.fill_missing_state(setup.program, state), setup.place_batch(batch)
            names = dict(zip(facts["index"], facts["videos"], strict=True))
            clips = [f"clip {row}, {names.get(i, 'padding')}" for row, i in enumerate(batch["index"].tolist())]
            yield from _clips_alone(setup, state, placed, clips)
            _, metrics = compiled_step.CompiledStep(setup.program, experiment, folder)(state, placed)
    again = "is skipped again" if float(metrics["skipped"]) else "is NOT skipped here"
    before = ", ".join(f"{name.replace('_', ' ')} {facts[name]}" for name in ("loss", "gradient_norm"))
    yield f"Step {facts['step']} {again}: {skipped_steps.numbers(metrics)} (in the run: {before}; None: not finite)"


def _read_batch(folder: epath.Path, size: int) -> dict[str, Any]:
    """Returns the rows of all processes; those that share rows (mesh axes `tensor`, `sequence`) have equal ones."""
    parts = []
    while (file := folder / f"batch_{len(parts)}.npz").exists():
        with storage.local(file) as path, np.load(path) as arrays:
            parts.append(dict(arrays))
    if sum(len(part["mask"]) for part in parts) > size:
        parts = list({part["index"].tobytes(): part for part in parts}.values())
    if (rows := sum(len(part["mask"]) for part in parts)) != size:
        raise ValueError(f"{folder}: the files batch_N.npz have {rows} clips of {size}; copy those of all hosts")
    flat = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"label": {}} | traverse_util.unflatten_dict(flat, sep="/")  # without labels in pretraining


def _set_up(experiment: Experiment, metadata: Mapping[str, Any]) -> TrainSetup:
    """Returns the run without its data, on as many of these devices as divide batch and parameters."""
    if jax.default_backend() == "cpu":  # the backend of the run may need other devices
        experiment = dataclasses.replace(experiment, model={**experiment.model, "attention_backend": "auto"})
    videos, rows = metadata["data"]["examples"], experiment.batch_size // experiment.optimizer.accumulate_steps
    width = experiment.model_config(metadata["heads"]).hidden_size
    mesh = sharding.make_mesh({"fsdp": -1}, jax.devices()[: math.gcd(rows, width, jax.device_count())])
    sizes = {"total_steps": experiment.total_steps(videos), "steps_per_epoch": experiment.steps_per_epoch(videos)}
    program = experiment.train_program(metadata["heads"], mesh, **sizes)
    spec = experiment.clip_spec(program.model.config)
    return TrainSetup(experiment, mesh, None, None, spec, program, sizes["total_steps"], 0)


def _clips_alone(setup: TrainSetup, state: Any, placed: Any, clips: Iterable[str]) -> Iterator[str]:
    experiment, program, order = setup.experiment, setup.program, []
    key, copies = step_key(experiment.seed, state.step), sharding.num_shards("batch")

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and (name := "/".join(context.module.path)) not in order:
            order.append(name)  # in the order in which modules end
        return outputs

    def loss_fn(params: Any, rows: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        video = rows["video"] if experiment.augment.mixes else normalise(rows["video"])
        options = {"rngs": {"dropout": key}, "capture_intermediates": True, "mutable": ["intermediates"]}
        with nn.intercept_methods(record):
            logits, sown = program.model.apply({"params": params}, video, train=True, **options)
        if experiment.pretraining:
            loss = masked_mean(logits["loss"], rows["mask"])
        else:
            args = jnp.float32(copies), experiment.loss, experiment.label_smoothing
            loss, _ = batch_loss(as_heads(logits), rows, *args)
        return loss, _broken(sown["intermediates"])

    @jax.jit
    def alone(params: Any, rows: Any, row: jax.Array) -> Any:
        clip = jax.tree.map(lambda x: jnp.repeat(x[row][None], copies, axis=0), rows) | {"mask": jnp.ones(copies)}
        trained = trained_leaves(program.optimizer, params)
        loss, outputs, gradients = loss_and_gradients(loss_fn, params, trained, clip, key)
        return loss, optax.tree.norm(gradients), outputs, _broken(gradients)

    if broken := [name for name, values in _broken(state.params).items() if values.any()]:
        yield f"Parameters before the step that are not finite: {', '.join(broken)}"
    augmented = jax.jit(lambda key, batch: augment_batch(key, batch, experiment.augment))(key, placed)
    wrong, largest = [], ("no clip", -1.0)
    for row, clip in enumerate(clips):
        loss, norm, outputs, gradients = jax.device_get(alone(state.params, augmented, row))
        innermost = [module for module in order if not any(other.startswith(f"{module}/") for other in order)]
        where = [*_places(order, outputs)[:1], *(f"gradients of {m}" for m in _places(innermost, gradients)[::-1])]
        where = where or ([] if np.isfinite([loss, norm]).all() else ["loss or gradient norm"])
        wrong += [f"{clip}: {where[0]}"] if where else []
        largest = max(largest, (clip, float(norm)), key=lambda pair: pair[1])
        yield f"  {clip}, alone: loss {loss:g}, gradient norm {norm:g}" + "".join(f"; BROKEN: {w}" for w in where[:1])
    yield (
        f"{len(wrong)} clips go wrong alone, the first in {wrong[0]}"
        if wrong
        else f"No clip goes wrong alone; the largest gradient norm is that of {largest[0]}"
    )


def _broken(tree: Any) -> dict[str, jax.Array]:
    """Returns {path: whether a leaf holds NaN or infinity}, [1], of stacked layers [L]."""
    named = {path_name(path): ~jnp.isfinite(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    return {n: x.reshape(len(x) if "layers" in n.split("/") else 1, -1).any(axis=1) for n, x in named.items()}


def _places(order: Sequence[str], broken: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the modules of `order`, the forward pass, that have a broken leaf, layer after layer."""
    found = set()
    for name, values in broken.items():
        if inside := [module for module in order if f"{name}/".startswith(module and f"{module}/")]:
            module = max(inside, key=len)
            stack = re.match("(.*/layers)?", module)[0]
            first = next(number for number, m in enumerate(order) if m == module or (stack and m.startswith(stack)))
            found |= {(first, layer, order.index(module), module) for layer in np.flatnonzero(values)}
    return [re.sub("/layers(?=/|$)", f"/layers[{layer}]", m) or "the logits" for _, layer, _, m in sorted(found)]
