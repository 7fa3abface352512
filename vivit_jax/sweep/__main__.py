"""Runs the rows of a sweep one after another, and writes a table and a plot.

    python -m vivit_jax.sweep --config=configs/study.py --workdir=runs/study --seeds=0,1,2
    python -m vivit_jax.sweep --config=configs/paper/table2.py --workdir=gs://BUCKET/table2 --set=batch_size=128

The config file defines `sweep()` beside `get_config()`. It returns {row: config} in the order of the table, where a
config is a ConfigDict, or {dotted field: value} to override in `get_config()`. `{workdir}` and `{seed}` in a string
value are the folder of the sweep and the seed of the run, so that a row can start from the result of another row:
`{"init_from.path": "{workdir}/image_model/seed_{seed}"}`.

Each run trains in WORKDIR/ROW/seed_SEED and writes `row.json` there in the end. The same command continues a sweep.
"""

import sys

import jax
from absl import flags
from etils import epath

from vivit_jax.config import flags as command_line
from vivit_jax.sweep.plan import Result, load_sweep, markdown, parse_overrides, plan, run_all, write


def main(argv: list[str]) -> None:
    from vivit_jax import distributed
    from vivit_jax.checkpoint import CheckpointError
    from vivit_jax.utils import logs

    logs.configure_logging()
    options = flags.FLAGS
    with distributed.synchronized_exit():
        results: list[Result] = []
        with command_line.exit_on(ValueError, OSError, CheckpointError):
            distributed.initialise()
            module, seeds = load_sweep(options.config), [int(seed) for seed in options.seeds]
            overrides = parse_overrides(options.set)
            runs = plan(module, options.workdir, seeds=seeds, rows=options.rows, overrides=overrides)
            for result in run_all(runs):
                results.append(result)
                if jax.process_index() == 0:  # after every run, so that intermediate results are visible
                    write(results, options.workdir, epath.Path(options.config).stem)
        if jax.process_index() == 0:
            print(markdown(results))
        if failures := [f"failed: {r.row}, seed {r.seed}: {r.failure}" for r in results if r.failure]:
            sys.exit("\n".join(failures))


if __name__ == "__main__":
    flags.DEFINE_string("config", None, "Config with sweep(): a file, or the name of a packaged config.")
    flags.DEFINE_string("workdir", None, "Folder of the sweep, for its runs and tables.")
    flags.DEFINE_list("seeds", [], "Comma-separated seeds; each row runs with each. Default: the config's seed.")
    flags.DEFINE_string("rows", "", "Only rows whose name begins with this regular expression.")
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE, an override for every row; may be repeated.")
    command_line.run(main, required=("config", "workdir"))
