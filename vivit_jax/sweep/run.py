"""The runs of a sweep, one after another."""

import time
from collections.abc import Iterator, Sequence

import jax
from absl import logging

from vivit_jax import train
from vivit_jax.checkpoint import CheckpointError
from vivit_jax.cost.counts import forward_count
from vivit_jax.data import open as data_open
from vivit_jax.models import count_parameters
from vivit_jax.sweep.plan import Result, Run, load_result, save_result


def run_all(runs: Sequence[Run]) -> Iterator[Result]:
    """Trains the unfinished runs one after another and yields the result of every run.

    A run that fails is logged and does not stop the others; a later sweep resumes it. ConfigError, before anything is
    trained, where a folder holds a run with another config.
    """
    results = [load_result(run) for run in runs]
    logging.info("%d of %d runs are finished.", sum(result is not None for result in results), len(runs))
    for number, (run, result) in enumerate(zip(runs, results, strict=True), start=1):
        if result is None:
            logging.info("Run %d of %d: %s, seed %d, in %s", number, len(runs), run.row, run.seed, run.workdir)
            began = time.monotonic()
            try:
                metrics = train.train(run.experiment, run.workdir)
                model = run.experiment.model_config(data_open.open_data(run.experiment.data)[0].heads)
                result = Result(run.row, run.seed, metrics, count_parameters(model), forward_count(model) / 1e9)
                if jax.process_index() == 0:
                    save_result(run, result)
            except (ValueError, OSError, RuntimeError, ArithmeticError, CheckpointError) as error:
                logging.exception("Run %s, seed %d failed", run.row, run.seed)
                result = Result(run.row, run.seed, failure=f"{type(error).__name__}: {error}")
            logging.info("Run %d of %d took %.0f s.", number, len(runs), time.monotonic() - began)
            jax.clear_caches()  # other rows rarely share this run's programs
        yield result
