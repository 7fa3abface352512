"""The host loop, read top to bottom: batch, step, log, evaluate, save.

Everything that a run decides follows from its config, its seed and the step, so that a run that was interrupted and
started again by the same command goes on as if nothing had happened, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import metric_writers, parameter_overview
from clu import metrics as clu_metrics
from etils import epath

from vivit_jax import checkpointing, convert, evaluate, logs, optim, plots, sharding
from vivit_jax.data import build, index, mixture, pipeline
from vivit_jax.experiment import ConfigError, Experiment
from vivit_jax.metrics import accuracy_names
from vivit_jax.models import ViViT
from vivit_jax.train_step import TrainState, make_train_step

CONFIG_FILE = "config.json"
INIT_REPORT = "init_report.txt"


def train(experiment: Experiment, workdir: epath.PathLike) -> dict[str, float]:
    """Trains, or goes on training, in `workdir` until the run's last step; evaluates and saves on the way.

    Args:
      experiment: the whole run.
      workdir: gets `checkpoints/`, TensorBoard events, `metrics.jsonl`, `config.json` and `pictures/`.

    Returns:
      The evaluation metrics of the last step, as `evaluate.evaluate` names them.

    Raises:
      CheckpointError: another run uses the workdir, or it holds another model's checkpoints.
      FileNotFoundError: the data set is not there; the message says what belongs where.
      FloatingPointError: the loss is no longer a number.
      ConfigError, ValueError: what the config gets wrong, before anything compiles.
    """
    workdir, data = epath.Path(workdir), experiment.data
    mesh = sharding.make_mesh(experiment.mesh)
    sharding.check_batch_size(mesh, experiment.batch_size, "batch_size")
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")

    training, held_out = open_data(experiment)
    choices = accuracy_names(held_out.heads)
    if experiment.checkpoint.best_metric not in choices:
        raise ConfigError(
            f"checkpoint.best_metric={experiment.checkpoint.best_metric!r} is not measured on {data.name}; "
            f"choose one of {', '.join(choices)}"
        )
    total_steps = experiment.total_steps(training.num_videos)
    steps_per_epoch = experiment.steps_per_epoch(training.num_videos)
    schedule = optim.learning_rate_schedule(
        experiment.optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    optimizer = optim.make_optimizer(experiment.optimizer, schedule)

    with checkpointing.lock(workdir), jax.set_mesh(mesh), contextlib.ExitStack() as at_the_end:
        checkpoints = open_checkpoints(experiment, workdir)
        at_the_end.callback(checkpoints.close)  # also when something goes wrong: what was saved and logged is kept
        experiment = follow_weights(experiment, training.heads, checkpoints.recorded())
        model = ViViT(experiment.model_config(training.heads))
        spec = experiment.clip_spec(model.config)
        abstract, init = state_maker(model, optimizer, experiment.seed, mesh)
        restored = checkpoints.restore(abstract)
        if restored is None and experiment.init_from.path is not None:
            init = state_from_weights(experiment, model, optimizer, abstract, workdir)
        state, meta = restored if restored is not None else (init(), None)
        first_step = int(state.step)
        rows = sharding.process_rows(mesh, experiment.batch_size)
        batches = pipeline.train_batches(
            training,
            spec,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            start_step=first_step,
            rows=rows,
            cache=data.cache,
            cache_limit=int(data.cache_gb * 2**30),
            threads=data.threads,
            prefetch=data.prefetch,
            service_address=data.service,
        )
        logging.info("Training on %s. Clips: %s", training, batches.plan)
        record = {
            "config": experiment.to_dict(),
            "heads": dict(training.heads),
            "class_names": {head: list(names) for head, names in training.class_names.items()},
            "data": {
                "dataset": data.name,
                "examples": training.num_videos,
                "order": training.fingerprint(experiment.seed, spec),
            },
        }
        announce(workdir, record, state.params, first_step, total_steps, meta)
        if first_step >= total_steps and meta and meta["metrics"]:
            return meta["metrics"]

        train_step = jax.jit(
            make_train_step(
                model.apply,
                optimizer,
                schedule,
                seed=experiment.seed,
                label_smoothing=experiment.label_smoothing,
                augment=experiment.augment,
            ),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), sharding.replicated(mesh)),
        )
        evaluator = evaluate.Evaluator(model, mesh, experiment, held_out, spec)
        writer = logs.make_writer(workdir)
        at_the_end.callback(writer.close)
        progress = logs.Progress(total_steps, first_step, writer, every_seconds=15.0)
        at_the_end.callback(progress.close)
        at_the_end.callback(batches.close)
        window = TrainingWindow(writer, progress)
        eval_every = round(experiment.evaluation.every_epochs * steps_per_epoch)
        metrics: dict[str, float] = {}

        for step in range(first_step + 1, total_steps + 1):
            batch = sharding.place_batch(next(batches), mesh, experiment.batch_size)
            state, step_metrics = train_step(state, batch)
            window.add(step, step_metrics)
            if step % experiment.log_every_steps == 0 or step == total_steps:
                window.close()
            progress(step)

            last = step == total_steps
            evaluating = last or (eval_every > 0 and step % eval_every == 0)
            if evaluating:
                window.flush()  # a loss that is not a number ends the run before it is saved
                with progress.report.timed("evaluation"):
                    result = evaluator(state.params)
                metrics = result.scalars
                writer.write_scalars(step, {f"eval/{name}": value for name, value in metrics.items()})
                show_confusion(writer, step, result, held_out.class_names)
                if last:
                    where = workdir / checkpointing.FOLDER / str(step)
                    evaluate.write_result(workdir, result, where, data.eval_split, held_out.class_names)
                progress.say(f"step {step}: {result.summary()}")
            if evaluating or step % experiment.checkpoint.every_steps == 0:
                window.flush()
                if batches.corrupt:
                    progress.say(
                        f"step {step}: {batches.corrupt} clips so far came from records that cannot be read and were "
                        f"masked; last: {', '.join(training.locate(i) for i in batches.last_corrupt[-10:])}"
                    )
                with progress.report.timed("checkpoint", wait_jax_async_dispatch=False):
                    checkpoints.save(step, state, record, metrics if evaluating else None)

        window.flush()
    write_curves(workdir)
    return metrics


def open_data(experiment: Experiment) -> tuple[mixture.TrainingSet, index.RecordSplit]:
    """What is trained on and what is evaluated, with the same classes.

    Raises:
      FileNotFoundError: a data set is not there; the message says what belongs where.
      MixtureError, SubsetError: data sets that cannot be mixed, a selection of what is not there.
    """
    data = experiment.data
    mixed = data.mixture or {data.name: 1.0}
    held_out = index.open_split(build.prepare(data.name, data.dir), data.eval_split)
    splits = {name: index.open_split(build.prepare(name, data.dir), data.train_split) for name in mixed}
    training = mixture.training_set(splits, data.name, mixed, data.unknown_classes, data.subset, held_out)
    return training, mixture.evaluation_split(held_out, training.class_names, data.subset)


def open_checkpoints(experiment: Experiment, workdir: epath.PathLike, **options: Any) -> checkpointing.Checkpoints:
    """The checkpoints of a run's workdir, kept as its config says."""
    return checkpointing.Checkpoints(
        epath.Path(workdir) / checkpointing.FOLDER,
        keep_latest=experiment.checkpoint.keep_latest,
        keep_best=experiment.checkpoint.keep_best,
        best_metric=experiment.checkpoint.best_metric,
        **options,
    )


def state_maker(model: ViViT, optimizer: Any, seed: int, mesh: Any) -> tuple[TrainState, Callable[[], TrainState]]:
    """The abstract state with its shardings, and the function that makes the first one where it belongs.

    Returns:
      (a TrainState of ShapeDtypeStructs, `() -> TrainState`). The values do not depend on the mesh.
    """

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, *model.config.video_shape)))["params"]
        return TrainState.create(params, optimizer)

    key = jax.random.key(seed)
    abstract = jax.eval_shape(init, key)
    shardings = sharding.state_sharding(mesh, abstract)
    return checkpointing.abstract_like(abstract, shardings), lambda: jax.jit(init, out_shardings=shardings)(key)


def follow_weights(experiment: Experiment, heads: Mapping[str, int], recorded: Mapping[str, Any] | None) -> Experiment:
    """The experiment with what the weights it starts from, or its own checkpoints, decide about the model.

    Args:
      experiment: its model may leave activation, epsilon, biases and the pre-logits layer open.
      heads: {head: classes}.
      recorded: the JSON item of the run's newest checkpoint; a run that goes on needs its first weights no more.

    Raises:
      ConfigError: the config asks for another value than that of the weights.
      FileNotFoundError, ValueError: the weights cannot be read, or are of no model that can be converted.
    """
    if recorded is not None:
        return experiment.following(recorded["config"]["model"])
    if experiment.init_from.path is None:
        return experiment
    wanted = experiment.model_config(heads)
    found = convert.model_for(experiment.init_from.path, wanted, experiment.init_from)
    for name in convert.FOLLOWED:
        asked = experiment.model.get(name)
        if asked is not None and asked != getattr(found, name):
            raise ConfigError(
                f"config.model.{name}={asked!r}, but the weights in {experiment.init_from.path} were trained with "
                f"{getattr(found, name)!r}; leave it unset to follow them"
            )
    return experiment.following(found.to_dict())


def state_from_weights(
    experiment: Experiment, model: ViViT, optimizer: Any, abstract: TrainState, workdir: epath.Path
) -> Callable[[], TrainState]:
    """The function that makes the first state from the weights of `config.init_from` (section 3.4).

    What became of every leaf goes to the log and to `init_report.txt` in the workdir.
    """

    def init() -> TrainState:
        options = experiment.init_from
        made = convert.initialise(options.path, model.config, options, seed=experiment.seed)
        logging.info("Initialised from %s", made.report.summary())
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / INIT_REPORT).write_text(f"{made.report}\n")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        params = jax.device_put(made.params, shardings.params)
        return jax.jit(lambda p: TrainState.create(p, optimizer), out_shardings=shardings)(params)

    return init


class TrainingWindow:
    """Averages of the training metrics over some steps, as a clu collection on the device.

    A window is fetched only when the step after it has been dispatched, so that the device never waits for the log.
    """

    def __init__(self, writer: metric_writers.MetricWriter, progress: logs.Progress):
        self._writer, self._progress = writer, progress
        self._open: tuple[int, Any] | None = None
        self._closed: tuple[int, Any] | None = None
        self._merge: Callable[..., Any] | None = None

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """The metrics of one more step, still on the device."""
        if self._merge is None:
            kind = clu_metrics.Collection.create(
                **{
                    name.replace("/", "__"): (
                        clu_metrics.LastValue if name == "learning_rate" else clu_metrics.Average
                    ).from_output(name)
                    for name in metrics
                }
            )
            self._merge = jax.jit(
                lambda old, new: (
                    kind.single_from_model_output(**new)
                    if old is None
                    else old.merge(kind.single_from_model_output(**new))
                )
            )
        self._open = (step, self._merge(self._open[1] if self._open else None, dict(metrics)))
        self._write()

    def close(self) -> None:
        """Ends the window at the newest step; it is written once the next step is under way, or by `flush`."""
        self._closed, self._open = self._open, None

    def flush(self) -> None:
        """Writes a closed window, and checks the open one, waiting for the device."""
        self._write()
        if self._open is not None:
            self._check(self._open[0], float(self._open[1].compute()["loss"]))

    def _write(self) -> None:
        if self._closed is None:
            return
        (step, window), self._closed = self._closed, None
        values = {name.replace("__", "/"): float(value) for name, value in window.compute().items()}
        self._writer.write_scalars(step, {f"train/{name}": value for name, value in values.items()})
        self._progress.show(step, values)
        self._check(step, values["loss"])

    @staticmethod
    def _check(step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} by step {step}; nothing was saved since. Lower optimizer.learning_rate, "
                "warm up for longer or clip (optimizer.clip_norm); the same command goes on from the last checkpoint"
            )


def announce(
    workdir: epath.Path,
    record: Mapping[str, Any],
    params: Any,
    first_step: int,
    total_steps: int,
    restored: Mapping[str, Any] | None,
) -> None:
    """Logs what is about to be trained, writes `config.json`, and says in what a resumed run differs from itself."""
    logging.info("Parameters:\n%s", parameter_overview.get_parameter_overview(params, include_stats=False))
    logging.info("Steps %d to %d on %d devices.", first_step, total_steps, jax.device_count())
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(record["config"], indent=2))
    if restored is None:
        return
    before, now = _flat(restored["config"]), _flat(record["config"])
    changed = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in sorted(before | now) if before.get(k) != now.get(k)]
    if changed:
        logging.warning("The config is not the one that the checkpoint was trained with: %s", "; ".join(changed))
    if restored["data"] != record["data"]:
        logging.warning(
            "The data or their order changed since the checkpoint (%s -> %s): the run goes on, but is not the "
            "uninterrupted one.",
            restored["data"],
            record["data"],
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def show_confusion(
    writer: metric_writers.MetricWriter, step: int, result: evaluate.Result, class_names: Mapping[str, Any]
) -> None:
    """The confusion matrices as images in TensorBoard."""
    for head, matrix in result.confusion.items() if jax.process_index() == 0 else ():
        figure = plots.confusion_matrix(matrix, class_names[head], f"{head}, step {step}")
        writer.write_images(step, {f"eval/confusion_{head}": plots.to_array(figure)[None]})
        plots.close(figure)


def write_curves(workdir: epath.Path) -> None:
    """The training curves of all of a run so far, as PNG in `workdir/pictures`."""
    if jax.process_index() == 0:
        series = logs.read_metrics(workdir / logs.METRICS_FILE)
        plots.save(plots.training_curves(series, workdir.name), workdir / "pictures" / "training_curves.png")
