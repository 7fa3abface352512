"""The shards of a build, written by Apache Beam: on this machine, or on a cluster (Dataflow, Flink, Spark).

One element is one shard: a worker decodes its files, writes it whole, and an interrupted build goes on with the shards
that are missing. The shards are those of a local build to the byte. Videos and output must be folders that all workers
see under the same path (a bucket, or a shared disk), and the workers need this package. Beam is the extra `[beam]`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vivit_jax.data import workers
from vivit_jax.data.build import shards
from vivit_jax.data.video import encode
from vivit_jax.utils import storage

# Seconds between looks at what the workers have finished.
_LOOK = 2.0


def runner_flags(runner: str, num_workers: int | None, flags: Sequence[str] = ()) -> list[str]:
    """Beam's flags for `--runner=...`.

    Args:
      runner: "direct" for processes of this machine; else the name of one of Beam's runners.
      num_workers: processes of the direct runner; None for one a core.
      flags: Beam's own, which are put behind.

    Raises:
      ValueError: a number of workers for another runner, or below 1.
    """
    if runner != "direct":
        if num_workers is not None:
            raise ValueError(f"--workers is of the runners local and direct; {runner} has flags of its own, after --")
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
    """The module apache_beam and its class PipelineOptions.

    Raises:
      ImportError: Apache Beam is not installed; the message names the extra.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError(
            f"runners other than local need Apache Beam: pip install 'vivit_jax[beam]' ({error})"
        ) from error
    return apache_beam, PipelineOptions


def write_shards(
    todo: Sequence[shards.Shard],
    staging: storage.AnyPath,
    form: encode.EncodeOptions,
    class_names: Mapping[str, Sequence[str]],
    flags: Sequence[str],
    on_rows: Callable[[int], None] = lambda rows: None,
    multi_label: Collection[str] = (),
) -> None:
    """Writes the shards `todo` into the folder `staging` and takes over their notes, so that each is done.

    Args:
      todo: planned shards.
      staging: a folder that the workers see too.
      form: what is stored of a video.
      class_names: head -> name of each class id.
      flags: as `runner_flags` returns.
      on_rows: called now and then with the number of rows that were finished since.
      multi_label: heads with several labels at once.

    Raises:
      ImportError: see `load`.
      RuntimeError: Beam is done, but not all shards are where this process can see them.
    """
    apache_beam, pipeline_options = load()
    options = pipeline_options(list(flags))
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(list(todo), staging, on_rows, ended), daemon=True)
    watch.start()
    try:
        with apache_beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Shards" >> apache_beam.Create(list(todo), reshuffle=False)
                # Without it, a runner may hand all shards to the worker that made the list.
                | "Spread" >> apache_beam.Reshuffle()
                | "Write" >> apache_beam.Map(write_shard, str(staging), form, dict(class_names), sorted(multi_label))
            )
    finally:
        ended.set()
        watch.join()
    for shard in todo:
        shards.restore(shard, staging)
    missing = [str(shard.staged(staging)) for shard in todo if not shard.done]
    if missing:
        raise RuntimeError(
            f"Beam is done, but {len(missing)} of {len(todo)} shards are not here, first {missing[0]}: the workers "
            "must see the output folder under the same path as this machine (a shared disk, or gs://)"
        )


def write_shard(
    shard: shards.Shard,
    staging: str,
    form: encode.EncodeOptions,
    class_names: Mapping[str, Sequence[str]],
    multi_label: Collection[str] = (),
) -> str:
    """A worker's part: writes one shard, unless another worker has, and returns its path."""
    from vivit_jax.data.records import schema

    folder = storage.path(staging)
    shards.restore(shard, folder)
    if not shard.done:
        # Decoding in a process of its own: a file that kills it costs itself, and not this worker of Beam.
        encoded = shards.encode_files(shard.files, form, num_workers=1)
        shards.write(shard, folder, encoded, schema.serialiser(class_names, multi_label))
    return str(shard.staged(folder))


def _watch(
    waiting: list[shards.Shard], staging: storage.AnyPath, on_rows: Callable[[int], None], ended: threading.Event
) -> None:
    """Tells of shards as their notes appear, until `ended`."""
    last = False
    while not last:
        last = ended.wait(_LOOK)
        there = set(storage.names(staging))
        finished = [shard for shard in waiting if shard.notes(staging).name in there]
        waiting = [shard for shard in waiting if shard not in finished]
        on_rows(sum(shard.num_rows for shard in finished))
