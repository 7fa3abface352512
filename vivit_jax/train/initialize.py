"""The state before the first step: restored, from pretrained weights or random; the start-up log."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import optax
from absl import logging
from clu import parameter_overview
from etils import epath

from vivit_jax import checkpoint as checkpointing
from vivit_jax import convert, report
from vivit_jax.config.experiment import CONFIG_FILE, Experiment
from vivit_jax.config.fields import differences
from vivit_jax.config.sections import IMAGE_MODEL_FOLDER, REPORT_FILE
from vivit_jax.train.setup import TrainSetup
from vivit_jax.train_step import TrainProgram, TrainState
from vivit_jax.utils import logs


def init_or_restore(
    setup: TrainSetup, checkpoints: Any, workdir: epath.Path, from_scratch: bool = False
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the state that training starts from, and the metadata of the checkpoint it came from (or None).

    Raises CheckpointError where the run had checkpoints and has none now, unless it may start `from_scratch`.
    """
    # 1. Resume from the newest valid checkpoint of this run.
    restored = checkpoints.restore(setup.program.state)
    if restored is not None:
        state, metadata = restored
        return fill_missing_state(setup.program, state), metadata
    every = setup.experiment.checkpoint.every_steps
    had = checkpointing.together(lambda: _lost_checkpoints(checkpoints, workdir, every), str)
    if had and not from_scratch:
        raise checkpointing.CheckpointError(
            f"{workdir} {had}, but {checkpoints.root} holds no checkpoint. Is its disk mounted? A sound step in "
            f"{checkpointing.QUARANTINE_DIR}/ can be moved back, to {checkpoints.root.name}/STEP. Otherwise choose "
            "another --workdir, or begin again at step 0 with --from_scratch"
        )
    # 2. Else start from the pretrained weights of the config, or at random.
    if setup.experiment.init_from.path is not None or setup.experiment.init_from.image_epochs:
        return init_from_weights(setup, workdir), None
    return setup.program.init_state(setup.experiment.seed), None


def _lost_checkpoints(checkpoints: Any, workdir: epath.Path, every_steps: int) -> str:
    """Says what shows that a run without checkpoints had some; '' where nothing does."""
    if damaged := checkpoints.quarantined():
        return f"has steps that were set aside ({', '.join(damaged)})"
    if (workdir / report.FILE).exists():
        return f"is a finished run ({report.FILE})"
    # Saving ends before the next one begins: a run that was killed before the second may have none.
    rows = list(logs.read_lines(workdir / logs.METRICS_FILE))
    if (last := max((row["step"] for row in rows), default=0)) > 2 * every_steps:
        return f"has logged {last} steps"
    evaluated = sorted({row["step"] for row in rows if any(name.startswith("eval/") for name in row)})
    return f"has evaluations of the steps {evaluated[0]} to {evaluated[-1]}" if len(evaluated) > 1 else ""


def init_from_weights(setup: TrainSetup, workdir: epath.Path) -> TrainState:
    """Returns the first state with the pretrained weights of `config.init_from` (section 3.4).

    Logs what became of every array, and writes it to `init_report.txt` in the workdir.
    """
    program, experiment, options = setup.program, setup.experiment, setup.experiment.init_from
    path = workdir / IMAGE_MODEL_FOLDER if options.path is None else options.path
    names = setup.train_set.class_names
    converted = convert.initialise(path, program.model.config, options, seed=experiment.seed, class_names=names)
    logging.info("Initialised from %s", converted.report.summary())
    for entry in converted.report.head_entries():
        logging.info("  %s %s: %s", entry.name, entry.outcome, entry.how)
    for line in converted.report.warnings:
        logging.warning("%s", line)
    if jax.process_index() == 0:
        (workdir / REPORT_FILE).write_text(f"{converted.report}\n")
    params = converted.params
    if experiment.pretraining:  # the decoder of masked pretraining is new
        params |= {name: of for name, of in program.init_state(experiment.seed).params.items() if name not in params}
    return program.state_from_params(params)


def fill_missing_state(program: TrainProgram, state: TrainState) -> TrainState:
    """Initialises what a restored checkpoint lacked (None), by its parameters: the EMA, the guard's counters."""
    if state.guard is not None and state.guard.parameter_average is None:  # until version 0.2.0
        norm = jax.jit(optax.tree.norm, out_shardings=program.state.guard.parameter_average.sharding)(state.params)
        state = state.replace(guard=state.guard.replace(parameter_average=norm))
    expected = [name for name in checkpointing.OPTIONAL if getattr(program.state, name) is not None]
    missing = [name for name in expected if getattr(state, name) is None]
    if not missing:
        return state
    logging.warning("The checkpoint has no %s; initialised from its parameters.", " and no ".join(missing))

    def create(params: Any) -> dict[str, Any]:
        fresh = TrainState.create(params, program.optimizer, program.ema_decay)
        return {name: getattr(fresh, name) for name in missing}

    shardings = {name: jax.tree.map(lambda leaf: leaf.sharding, getattr(program.state, name)) for name in missing}
    return state.replace(**jax.jit(create, out_shardings=shardings)(state.params))


def log_start(setup: TrainSetup, state: TrainState, restored: Mapping[str, Any] | None, workdir: epath.Path) -> None:
    """Logs what will be trained, writes `config.json`, and warns of what changed since the `restored` checkpoint."""
    metadata = setup.checkpoint_metadata
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    logging.info("Parameters:\n%s", overview)
    logging.info("Steps %d to %d on %d devices.", int(state.step), setup.total_steps, jax.device_count())
    if jax.process_index() == 0:
        (workdir / CONFIG_FILE).write_text(json.dumps(metadata["config"], indent=2))
    if restored is None:
        return
    before = Experiment.from_config(restored["config"]).to_dict()  # fields that are new since then have their defaults
    if changed := differences(before, metadata["config"]):
        logging.warning("The config differs from that of the checkpoint: %s", "; ".join(changed))
    data = {name: metadata["data"][name] for name in restored["data"]}  # an older one has no `index`
    if restored["data"] != data:
        change, effect = f"{restored['data']} -> {data}", "the run continues, but is not the uninterrupted one"
        logging.warning("The data or their order changed since the checkpoint (%s): %s.", change, effect)
