"""The host loop, read top to bottom: batch, step, log, evaluate, save.

Everything that a run decides follows from its config, its seed and the step, so that a run that was interrupted and
started again by the same command goes on as if nothing had happened, to the bit.
"""

from __future__ import annotations

import contextlib

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed, report, sharding
from vivit_jax.config.experiment import Experiment
from vivit_jax.data import pipeline
from vivit_jax.data.open import open_data
from vivit_jax.evaluation.evaluator import Evaluator
from vivit_jax.train import compiled_step, periodic_evaluation, skipped_steps, throughput, train_metrics
from vivit_jax.train.initialize import (
    inherit_model_fields,
    init_or_restore,
    log_start,
    open_checkpoints,
)
from vivit_jax.train.preemption import Preemption
from vivit_jax.utils import logs
from vivit_jax.utils.profiler import Profiler


def train(experiment: Experiment, workdir: epath.PathLike) -> dict[str, float]:
    """Trains, or goes on training, in `workdir` until the run's last step; evaluates and saves on the way.

    Args:
      experiment: the whole run.
      workdir: gets `checkpoints/`, TensorBoard events, `metrics.jsonl`, `config.json`, `pictures/` and `report.html`;
        as the case may be `profile/`, `skipped_steps.jsonl`, `failed_step/`.

    Returns:
      The evaluation metrics of the last step, on all videos, as `evaluate.evaluate` names them.

    Raises:
      CheckpointError: another run uses the workdir, or it holds another model's checkpoints.
      FileNotFoundError: the data set is not there; the message says what belongs where.
      TooManySkippedSteps (a FloatingPointError): the guard skipped `guard.max_consecutive` steps in a row.
      OutOfDeviceMemory (a MemoryError): it does not fit; the message says what takes less.
      Preempted (a SystemExit): the run was told to stop, and has saved its step.
      ConfigError, ValueError: what the config gets wrong, before anything compiles.
    """
    workdir, data = epath.Path(workdir), experiment.data
    mesh = sharding.make_mesh(experiment.mesh)
    parts = experiment.optimizer.accumulate_steps
    sharding.check_batch_size(mesh, experiment.batch_size, "batch_size")
    if parts > 1:
        sharding.check_batch_size(mesh, experiment.batch_size // parts, "batch_size / optimizer.accumulate_steps")
    sharding.check_batch_size(mesh, experiment.evaluation.batch_size, "evaluation.batch_size")

    training, held_out = open_data(data)
    periodic_evaluation.check_metric(experiment, held_out.heads, held_out.multi_label)
    experiment.loss.weights(training.heads)  # of heads that there are
    total_steps = experiment.total_steps(training.num_videos)
    steps_per_epoch = experiment.steps_per_epoch(training.num_videos)
    eval_every = experiment.evaluation.interval(steps_per_epoch)

    with (
        checkpointing.lock(workdir),
        jax.set_mesh(mesh),
        compiled_step.cached(experiment.compilation_cache, workdir),
        contextlib.ExitStack() as at_the_end,
        distributed.limited_unwinding(),
    ):
        checkpoints = open_checkpoints(experiment, workdir)
        at_the_end.callback(checkpoints.close)  # also when something goes wrong: what was saved and logged is kept
        experiment = inherit_model_fields(experiment, training.heads, checkpoints.recorded())
        program = experiment.train_program(
            training.heads, mesh, total_steps=total_steps, steps_per_epoch=steps_per_epoch
        )
        model = program.model
        spec = experiment.clip_spec(model.config)
        state, meta = init_or_restore(experiment, program, checkpoints, workdir, training.class_names)
        first_step = int(state.step)
        batches = pipeline.train_batches(
            training,
            spec,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            start_step=first_step,
            rows=sharding.process_rows(mesh, experiment.batch_size),
            options=data,
        )
        at_the_end.callback(batches.close)
        logging.info("Training on %s. Clips: %s", training, batches.description)
        record = {
            "config": experiment.to_dict(),
            "heads": dict(training.heads),
            "class_names": {head: list(names) for head, names in training.class_names.items()},
            "multi_label": sorted(training.multi_label),
            "data": {
                "dataset": data.name,
                "examples": training.num_videos,
                "order": training.fingerprint(experiment.seed, spec),
            },
        }
        log_start(workdir, record, state.params, first_step, total_steps, meta)

        writer = logs.make_writer(workdir)
        at_the_end.callback(writer.close)
        progress = logs.Progress(total_steps, first_step, writer, every_seconds=15.0)
        at_the_end.callback(progress.close)
        evaluation = periodic_evaluation.Evaluations(
            experiment,
            lambda videos: Evaluator(model, mesh, experiment, held_out, spec, videos=videos),
            workdir,
            held_out,
            writer,
            progress,
            (meta or {}).get("early_stop"),
        )
        metrics: dict[str, float] = (meta or {}).get("metrics", {})
        if metrics and (first_step >= total_steps or evaluation.over):
            return meta.get("whole") or metrics
        if meta and not metrics and (first_step >= total_steps or (eval_every and first_step % eval_every == 0)):
            metrics = evaluation(first_step, state, last=first_step >= total_steps)  # the run was stopped before it
        last_step = first_step if evaluation.over else total_steps

        train_step = compiled_step.AheadOfTime(program.step, experiment)
        speed = throughput.of_run(model.config, experiment.batch_size, experiment.peak_flops)
        window = train_metrics.TrainingWindow(writer, progress, speed)
        guard = skipped_steps.SkippedSteps(experiment.guard.max_consecutive, training, workdir, record)
        profiler = Profiler(experiment.profile.range, workdir)
        at_the_end.callback(profiler.close)
        preemption = at_the_end.enter_context(Preemption(checkpoints).listening())
        watchdog = at_the_end.enter_context(distributed.watchdog(experiment.step_timeout_seconds))

        for step in range(first_step + 1, last_step + 1):
            with speed.waiting(step):
                batch = next(batches)
            placed = sharding.place_batch(batch, mesh, experiment.batch_size)
            with profiler.step(step, state):
                state, step_metrics = train_step(state, placed)
            if step == first_step + 1:
                speed.start(step)  # the first one has compiled
            watchdog.step()
            profiler.after(step, step_metrics)
            window.add(step, step_metrics)
            guard.add(step, step_metrics, batch, state)
            if step % experiment.log_every_steps == 0:
                window.close()
            progress(step)

            last, leaving = step == last_step, preemption.reached(step)
            evaluating = not leaving and (last or (eval_every > 0 and step % eval_every == 0))
            if not (evaluating or leaving or step % experiment.checkpoint.every_steps == 0):
                continue
            window.flush()
            guard.flush(state)
            if batches.corrupt:
                progress.write(
                    f"step {step}: {batches.corrupt} clips so far came from records that cannot be read and were "
                    f"masked; last: {', '.join(training.locate(i) for i in batches.last_corrupt[-10:])}"
                )
            with speed.paused(), watchdog.paused():
                metrics = evaluation(step, state, last) if evaluating else {}
                with progress.report.timed("checkpoint", wait_jax_async_dispatch=False):
                    judged = {"early_stop": evaluation.early_stop.record, "whole": evaluation.whole}
                    checkpoints.save(step, state, record | judged, metrics)
            if leaving:
                checkpoints.wait()
                raise distributed.Preempted(step)
            if evaluation.over:
                break

        window.close()
        window.flush()
    periodic_evaluation.write_curves(workdir)
    report.write(workdir)
    return evaluation.whole or metrics
