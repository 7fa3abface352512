"""The train loop, read top to bottom: setup, state, batch, step, metrics, evaluate, save.

All decisions of a run follow from its config, its seed and the step, so a run that was interrupted and started again by
the same command continues as if nothing had happened, to the bit.
"""

import contextlib
import time
from typing import Any

import jax
from absl import logging
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import distributed, report
from vivit_jax.config.experiment import Experiment
from vivit_jax.config.sections import IMAGE_MODEL_FOLDER
from vivit_jax.data import host_tf
from vivit_jax.evaluation.evaluator import EvaluationInterrupted
from vivit_jax.models import ViViTConfig
from vivit_jax.train import compiled_step, initialize, periodic_evaluation, throughput
from vivit_jax.train.preemption import Preemption
from vivit_jax.train.profiler import Profiler
from vivit_jax.train.setup import set_up
from vivit_jax.train.skipped_steps import SkippedSteps
from vivit_jax.utils import logs, plots, storage
from vivit_jax.utils.goodput import Ledger


def train(experiment: Experiment, workdir: epath.PathLike, *, from_scratch: bool = False) -> dict[str, float]:
    """Trains, or resumes training, in `workdir` until the run's last step; evaluates and saves on the way.

    `workdir` gets `checkpoints/`, TensorBoard events, `metrics.jsonl`, `config.json`, `pictures/`, `report.html` and,
    where they apply, `profile/`, `skipped_steps.jsonl`, `failed_step/`. Wrong settings raise before anything compiles.
    A run whose checkpoints are gone begins again at step 0 only if `from_scratch` says so.

    Returns the metrics of the last evaluation, on all videos, with the names of `evaluate.evaluate`. Raises
    CheckpointError (another run uses the workdir, or it holds another model's checkpoints, or it lost its own),
    TooManySkippedSteps, OutOfDeviceMemory, and Preempted (a SystemExit) where the run was asked to stop, and has saved.
    """
    with distributed.watching(experiment.step_timeout_seconds), contextlib.closing(Ledger()) as ledger:
        return _train(experiment, epath.Path(workdir), from_scratch, ledger)


def _train(experiment: Experiment, workdir: epath.Path, from_scratch: bool, ledger: Ledger) -> dict[str, float]:
    ledger.mark("imports")

    # Setup: mesh, data, model, schedule, optimizer, train step. Nothing compiles yet.
    distributed.beat("build" if experiment.data.video_dir else "start")
    setup = set_up(experiment, workdir)
    ledger.mark("setup")
    if experiment.init_from.path is None and experiment.init_from.image_epochs and not setup.resumed:
        logging.info("Training an image model first, in %s.", workdir / IMAGE_MODEL_FOLDER)
        train(experiment.image_experiment(), workdir / IMAGE_MODEL_FOLDER)
        ledger.mark("image model")
    distributed.beat("start")

    # The workdir, locked, and the devices. What was saved and logged is kept when an exception ends the run.
    options = {name: value for name, value in vars(experiment.checkpoint).items() if name != "every_steps"}
    with (
        lock(workdir),
        jax.set_mesh(setup.mesh),
        compiled_step.compilation_cache(experiment.compilation_cache, workdir),
        contextlib.ExitStack() as stack,
        distributed.exit_deadline(),  # for what the stack closes after an exception
    ):
        checkpoints = stack.enter_context(checkpointing.Checkpoints(workdir / checkpointing.FOLDER, **options))

        # The train step compiles in the background, unless the run is finished.
        train_step = compiled_step.CompiledStep(setup.program, setup.experiment, workdir)
        if (checkpoints.latest() or 0) < setup.total_steps:
            train_step.start(setup.mesh, setup.abstract_batch())

        preemption = stack.enter_context(Preemption(checkpoints).listening())

        # State: resumed, else from pretrained weights, else random.
        state, restored = initialize.init_or_restore(setup, checkpoints, workdir, from_scratch)
        first_step = int(state.step)
        ledger.mark("init" if restored is None else "restore")
        ledger.open(workdir)
        host_tf.load()  # takes seconds, so not before all that can be wrong with a config has shown
        ledger.mark("imports")
        initialize.log_start(setup, state, restored, workdir)
        writer = stack.enter_context(contextlib.closing(logs.make_writer(workdir)))  # imports TensorFlow
        from clu import periodic_actions  # imports TensorFlow, too

        progress = periodic_actions.ReportProgress(num_train_steps=setup.total_steps, writer=writer, every_secs=15.0)

        # Evaluation: also of the restored state, if the run was stopped before it could be evaluated.
        evaluation = periodic_evaluation.PeriodicEvaluation(setup, workdir, writer, progress, restored)
        ledger.mark("other")
        try:
            before = evaluation.metrics
            finished = evaluation.resume(first_step, state, preemption.reached)
            ledger.mark("evaluation")
            if evaluation.metrics is not before:
                checkpoints.add_metrics(first_step, evaluation.checkpoint_metadata, evaluation.metrics)
            if finished:
                return evaluation.final_metrics
        except EvaluationInterrupted:
            raise distributed.Preempted(first_step) from None
        last_step = first_step if evaluation.early_stop.over else setup.total_steps

        # Data, compiled step, and what measures and checks the steps.
        batches = stack.enter_context(contextlib.closing(setup.train_batches(first_step)))
        profiler = stack.enter_context(contextlib.closing(Profiler(experiment.profile.range, workdir)))
        speed = make_throughput(setup.experiment, setup.program.model.config)
        train_metrics = throughput.TrainMetrics(writer, speed, experiment.log_every_steps)
        skipped = SkippedSteps(experiment.guard.max_consecutive, setup.train_set, workdir, setup.checkpoint_metadata)

        def take_batch(step: int) -> tuple[Any, Any]:
            """Returns the batch of a step on the host and on the devices, to which it may still be copied."""
            distributed.beat("batch", step)
            began = time.perf_counter()
            batch = next(batches)
            speed.waited(step, time.perf_counter() - began)
            ledger.waited(step)
            return batch, setup.place_batch(batch)

        placed = None
        if first_step < last_step:
            ledger.mark("other")
            batch, placed = take_batch(first_step + 1)
            distributed.beat("compile")
            train_step.compile(state, placed)
            ledger.mark("compile")

        preemption.training, evaluate, save = True, False, False
        for step in range(first_step + 1, last_step + 1):
            # Train. While the devices compute, the next batch is copied, except where evaluation or saving follows.
            if placed is None:
                batch, placed = take_batch(step)
            profiler.before_step(step, state)
            distributed.beat("step", step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, placed)
            ledger.stepped(step, metrics["loss"])
            if step == first_step + 1:
                logging.info("From the start to the end of the first step: %s.", ledger)
                with plots.optional("the training clips"):
                    logs.write_clips(writer, step, "train/clips", batch["video"])
            trained, placed = batch, None
            evaluate |= evaluation.due(step)
            save |= step % setup.experiment.checkpoint.every_steps == 0
            if step < last_step and not (evaluate or save):
                batch, placed = take_batch(step + 1)
            distributed.beat("step", step)
            if step == first_step + 1:
                speed.start(step)
            profiler.after_step(step, state)  # before the others put work on the devices
            train_metrics.after_step(step, metrics)
            skipped.after_step(step, state, metrics, trained)
            progress(step)
            ledger.stepped(step)

            # Evaluate and save, when due.
            preempted = preemption.reached()
            if not (evaluate or preempted or save):
                continue
            train_metrics.flush()
            skipped.flush(state)
            if batches.corrupt:
                logging.info("step %d: %d clips so far are of broken records, and masked", step, batches.corrupt)
            if skipped.skipping and step < last_step and not preempted:
                continue  # deferred: parameters that make steps fail replace no checkpoint
            ledger.stepped(step)
            ledger.write()
            evaluate &= not preempted
            began = time.perf_counter()
            preemption.saving, losses = True, [skipped.loss]
            distributed.beat("save", step)
            with progress.timed("checkpoint", wait_jax_async_dispatch=False):
                metadata = {**setup.checkpoint_metadata, **evaluation.checkpoint_metadata}
                checkpoints.save(step, state, {**metadata, "sound": setup.is_sound(losses)})
            ledger.mark("checkpoint")
            if evaluate:  # after saving, so that a failure in the evaluation does not lose the step
                preemption.saving = False
                try:
                    evaluation.run(step, state, preemption.reached)
                    losses = [value for name, value in evaluation.metrics.items() if name.endswith("loss")] or losses
                    metadata |= {**evaluation.checkpoint_metadata, "sound": setup.is_sound(losses)}
                    ledger.mark("evaluation")
                    checkpoints.add_metrics(step, metadata, evaluation.metrics)
                except EvaluationInterrupted:  # the resumed run evaluates this step
                    preempted = True
                preemption.saving = True
            if not setup.is_sound(losses):
                kept = f"The newest sound one, {checkpoints.newest_sound()}, is kept."
                logging.error("Step %d is not sound: loss %s. %s", step, losses, kept)
            if preempted or step == last_step or evaluation.early_stop.over:
                checkpoints.wait()  # while SIGTERM is still handled
            ledger.write("checkpoint")
            if preempted:
                raise distributed.Preempted(step)
            preemption.saving = evaluate = save = False
            speed.paused(time.perf_counter() - began)
            if evaluation.early_stop.over:
                break
        train_metrics.finish()

    # Plots and report, when all files of the run are closed.
    ledger.write("checkpoint")
    distributed.beat("end")
    periodic_evaluation.write_curves(workdir)
    report.write(workdir)
    return evaluation.final_metrics


def make_throughput(experiment: Experiment, config: ViViTConfig) -> throughput.Throughput:
    """Returns the measurement of a run's speed."""
    flops = throughput.model_flops(config, experiment.batch_size)
    peak = experiment.peak_flops or throughput.peak_flops(jax.devices()[0].device_kind)
    peak = None if experiment.pretraining else peak  # the FLOPs with masked tokens are not counted
    return throughput.Throughput(experiment.batch_size, jax.device_count(), flops, peak)


def lock(workdir: epath.PathLike) -> contextlib.AbstractContextManager:
    """Locks a workdir, unless it is in a bucket; CheckpointError where another run has it. Orbax has no lock."""
    if jax.process_index() != 0 or storage.is_remote(workdir):
        return contextlib.nullcontext()
    path = epath.Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another run is using {workdir} (it holds {path}); wait for it, stop it, or choose another --workdir"
    return storage.locked(path, checkpointing.CheckpointError(busy))
