"""The rows of a sweep, one run after another, into a table and a plot.

    python -m vivit_jax.sweep --config=configs/study.py --workdir=runs/study --seeds=0,1,2
    python -m vivit_jax.sweep --config=configs/paper/table2.py --workdir=gs://BUCKET/table2 --set=batch_size=128

A config file takes part that has `sweep()` beside `get_config()`. It returns {row: config}, in the order of the table,
where a config is a whole ConfigDict, or {dotted field: value} to be laid over `get_config()`. `{workdir}` and `{seed}`
in a text value are the sweep's folder and the run's seed, so that a row can start from what another has learnt:
`{"init_from.path": "{workdir}/image_model/seed_{seed}"}`.

Each run trains in WORKDIR/ROW/seed_SEED and leaves `row.json` there when it is done. The same command goes on where it
was: what is done is not done again, what was interrupted is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence

import jax
from absl import app, flags, logging
from etils import epath

from vivit_jax.sweep.plan import DONE_FILE, Finished, Run, finished, load_sweep, parse_changes, plan


def carry_out(runs: Sequence[Run]) -> Iterator[Finished]:
    """Does what is not done yet, run after run, and hands over what each left.

    A run that fails is told of and does not keep the others from running; what it left can be resumed.

    Raises:
      ConfigError: of a folder with another config's run, before anything is trained.
    """
    from vivit_jax.checkpoint import CheckpointError
    from vivit_jax.cost.counts import forward_count
    from vivit_jax.data.open import open_data
    from vivit_jax.models import count_parameters
    from vivit_jax.train import train

    known = [finished(run) for run in runs]
    if done := sum(found is not None for found in known):
        logging.info("%d of %d runs are done already.", done, len(runs))
    for place, (run, found) in enumerate(zip(runs, known, strict=True), start=1):
        if found is None:
            logging.info("Run %d of %d: %s, seed %d, in %s", place, len(runs), run.row, run.seed, run.workdir)
            began = time.monotonic()
            try:
                metrics = train(run.experiment, run.workdir)
                model = run.experiment.model_config(open_data(run.experiment.data)[0].heads)
                found = Finished(run.row, run.seed, metrics, count_parameters(model), forward_count(model) / 1e9)
            except (ValueError, OSError, RuntimeError, ArithmeticError, CheckpointError) as error:
                logging.exception("Run %s, seed %d failed", run.row, run.seed)
                found = Finished(run.row, run.seed, failure=f"{type(error).__name__}: {error}")
            else:
                _leave(run, found)
            logging.info("Run %d of %d took %.0f s.", place, len(runs), time.monotonic() - began)
            jax.clear_caches()  # the programs of this run's model, which no other may need
        yield found


def _leave(run: Run, found: Finished) -> None:
    if jax.process_index() == 0:
        record = dataclasses.asdict(found) | {"config": run.experiment.to_dict()}
        (run.workdir / DONE_FILE).write_text(json.dumps(record, indent=2))


def main(argv: list[str]) -> None:
    from vivit_jax import checkpoint as checkpointing
    from vivit_jax import distributed
    from vivit_jax.sweep import table
    from vivit_jax.utils import logs

    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logs.configure_logging()
    given = flags.FLAGS
    with distributed.ending_together():
        results: list[Finished] = []
        try:
            distributed.initialise()
            module, seeds = load_sweep(given.config), [int(seed) for seed in given.seeds]
            runs = plan(module, given.workdir, seeds=seeds, rows=given.rows, changes=parse_changes(given.set))
            for found in carry_out(runs):
                results.append(found)
                # After every run, so that what is known can be looked at while the rest is still to come.
                table.write(results, given.workdir, epath.Path(given.config).stem, given.metrics)
        except (ValueError, OSError, checkpointing.CheckpointError) as error:
            sys.exit(f"error: {error}")
        if jax.process_index() == 0:
            print(table.markdown(results, given.metrics))
        if failed := [found for found in results if found.failure]:
            sys.exit("\n".join(f"failed: {found.row}, seed {found.seed}: {found.failure}" for found in failed))


def run() -> None:
    """Entry point."""
    # Defined here, so that this module can be imported beside others whose flags have the same names.
    flags.DEFINE_string("config", None, "Config file with sweep().")
    flags.DEFINE_string("workdir", None, "Folder of the sweep: its runs, and its tables.")
    flags.DEFINE_list("seeds", [], "Seeds, with commas; each row is run with each. Default: the config's.")
    flags.DEFINE_string("rows", "", "Only rows whose name begins with this regular expression.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE, laid over every row; may be given again.")
    flags.DEFINE_list("metrics", [], "Columns of the table. Default: every top1, or what there is.")
    flags.mark_flags_as_required(["config", "workdir"])
    logging.set_verbosity(logging.INFO)
    app.run(main)


if __name__ == "__main__":
    run()
