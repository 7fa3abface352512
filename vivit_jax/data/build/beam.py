"""Writes the shards of a build with Apache Beam, on this machine or on a cluster (Dataflow, Flink, Spark).

One element is one shard: a worker decodes its files and writes it, and an interrupted build continues with the missing
shards. The shards equal those of a local build, byte by byte. All workers must see the videos and the output under the
same path (a bucket or a shared disk) and have this package installed. Beam is the extra `[beam]`.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vivit_jax.data import workers
from vivit_jax.data.build import shards
from vivit_jax.data.video import encode
from vivit_jax.utils import storage

_POLL_SECONDS = 2.0


def runner_flags(runner: str, num_workers: int | None, flags: Sequence[str] = ()) -> list[str]:
    """Returns Beam's flags for `--runner=...`; `num_workers` (None: one per core) is for the direct runner only."""
    if runner != "direct":
        if num_workers is not None:
            raise ValueError(f"--workers is for the runners local and direct; {runner} has its own flags, after --")
        return [f"--runner={runner}", *flags]
    count = workers.default_workers() if num_workers is None else num_workers
    if count < 1:
        raise ValueError(f"workers is {count}; the direct runner needs at least 1")
    return [
        "--runner=DirectRunner",
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={count}",
        "--default_sdk_harness_log_level=WARNING",
        *flags,
    ]


def load() -> tuple[Any, Any]:
    """Imports the module apache_beam and its class PipelineOptions; the ImportError names the extra."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        hint = "runners other than local need Apache Beam: pip install 'vivit_jax[beam]'"
        raise ImportError(f"{hint} ({error})") from error
    return apache_beam, PipelineOptions


def write_shards(
    todo: Sequence[shards.Shard],
    staging: storage.AnyPath,
    options: encode.EncodeOptions,
    class_names: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    on_rows: Callable[[int], None] = lambda rows: None,
    multi_label: Collection[str] = (),
) -> None:
    """Writes planned shards into the folder `staging` and loads their metadata, so that each is `done`.

    The workers must see `staging`. `on_rows` receives the number of rows finished since the last call.
    """
    apache_beam, pipeline_options = load()
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(list(todo), staging, on_rows, finished), daemon=True)
    watcher.start()
    try:
        with apache_beam.Pipeline(options=pipeline_options(list(flags))) as pipeline:
            _ = (
                pipeline
                | "Shards" >> apache_beam.Create(list(todo), reshuffle=False)
                # Otherwise a runner may give all shards to the worker that created the list.
                | "Spread" >> apache_beam.Reshuffle()
                | "Write" >> apache_beam.Map(write_shard, str(staging), options, dict(class_names), sorted(multi_label))
            )
    finally:
        finished.set()
        watcher.join()
    for shard in todo:
        shards.restore(shard, staging)
    if missing := [str(shard.path(staging)) for shard in todo if not shard.done]:
        advice = "the workers must see the output folder under the same path as this machine (a shared disk, or gs://)"
        problem = f"{len(missing)} of {len(todo)} shards are missing, first {missing[0]}"
        raise RuntimeError(f"Beam has finished, but {problem}: {advice}")


def write_shard(
    shard: shards.Shard,
    staging: str,
    options: encode.EncodeOptions,
    class_names: Mapping[str, Sequence[str]],
    multi_label: Collection[str] = (),
) -> str:
    """Writes one shard, unless another worker has, and returns its path; runs on a worker."""
    from vivit_jax.data.records import schema

    folder = storage.path(staging)
    shards.restore(shard, folder)
    if not shard.done:
        # One process for decoding: a file that kills it does not kill the worker of Beam.
        encoded = shards.encode_files(shard.files, options, 1, folder)
        shards.write(shard, folder, encoded, schema.serialiser(class_names, multi_label))
    return str(shard.path(folder))


def _watch(
    waiting: list[shards.Shard], staging: storage.AnyPath, on_rows: Callable[[int], None], finished: threading.Event
) -> None:
    """Reports the rows of shards whose metadata has appeared, until `finished`."""
    last = False
    while not last:
        last = finished.wait(_POLL_SECONDS)
        names = set(storage.names(staging))
        written = [shard for shard in waiting if shard.metadata_path(staging).name in names]
        waiting = [shard for shard in waiting if shard not in written]
        on_rows(sum(shard.num_rows for shard in written))
