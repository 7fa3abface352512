"""TFDS builder: annotations and videos -> sharded TFRecords of 16-frame JPEG chunks, and their index.

Each shard holds its rows in the order of the annotations. (A `GeneratorBasedBuilder` or TFDS's own Beam writers would
not scale: beyond 1 GB they sort by 128-bit keys spread over 1,000 files, where small integers all fall into the first,
which is read into memory.) The shards are written first, by worker processes (`shards.py`) or by Beam (`beam.py`); TFDS
then gives them their final names and writes its metadata.

A bucket can neither rename a folder atomically nor link files: there, TFDS works in a local temporary folder with empty
files of the shards' sizes, the shards are renamed in the bucket, the metadata is copied to it, and `summary.json` comes
last.
"""

import contextlib
import functools
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from etils import epath

from vivit_jax.data import annotations, catalog
from vivit_jax.data.build import shards
from vivit_jax.data.build.options import BuildOptions
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE, VERSION, records_folder
from vivit_jax.data.records import indexing
from vivit_jax.data.records.split import CHUNK_FRAMES, RecordSplit, list_shards, save_class_names
from vivit_jax.data.video import encode
from vivit_jax.utils import progress_bar, storage, tables

import tensorflow_datasets as tfds  # isort: skip: after `host_tf`, which sets TensorFlow up
from vivit_jax.data.records.schema import features, serialiser


class VideoRecords(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Builds the records of one data set under `data_dir/NAME/1.0.0`; arguments and errors as `dataset.build`."""

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded, so TFDS must not look for checksums of downloads beside this file.
    url_infos: ClassVar[dict] = {}

    def __init__(
        self,
        dataset: catalog.DatasetInfo,
        videos: storage.PathLike,
        annotation_folder: storage.PathLike,
        data_dir: storage.PathLike,
        encode_options: encode.EncodeOptions,
        options: BuildOptions,
    ):
        self.dataset, self.encode_options, self.options = dataset, encode_options, options
        if options.runner != "local":
            from vivit_jax.data.build import beam  # an extra

            beam.load()  # fails early if Beam is not installed
            self._runner_flags = beam.runner_flags(options.runner, options.num_workers, options.runner_flags)
        self._annotations = annotations.read(dataset, annotation_folder)
        rows = self._annotations.rows
        if absent := [split for split in options.splits or () if split not in rows]:
            raise ValueError(f"{dataset.name} has no split {', '.join(absent)}; the annotations have {', '.join(rows)}")
        video_files = annotations.VideoFiles(dataset, videos)
        video_files.check(itertools.chain.from_iterable(rows.values()))
        self._shards = {
            split: shards.plan(split, rows[split], video_files, dataset.rows_per_shard)
            for split in rows
            if options.splits is None or split in options.splits
        }
        if video_files.first_frames is not None and encode_options.fps is None:
            advice = "give it by --fps=N (config.data.fps), in frames per second"
            raise ValueError(f"{video_files.first_frames} is a folder of frames, without a frame rate: {advice}")
        self._all_shards = list(itertools.chain.from_iterable(self._shards.values()))
        self.name = dataset.name
        self._final = records_folder(dataset.name, data_dir)
        self._scratch = tempfile.mkdtemp(prefix="vivit_jax-") if storage.is_remote(data_dir) else None
        super().__init__(data_dir=self._scratch or data_dir)
        self._staging = storage.path(f"{self._final}.partial-{shards.fingerprint(self._all_shards, encode_options)}")

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            features=features(self._annotations.class_names, self._annotations.multi_label),
            description=f"{self.dataset.title}: chunks of {CHUNK_FRAMES} consecutive frames",
            disable_shuffling=True,
        )

    def build(self) -> storage.AnyPath:
        """Builds the records and returns their folder; shards of an interrupted build are used."""
        self._staging.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if self._scratch:
                stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            else:
                busy = f"another build is at work in {self._final.parent}; wait for its end, or stop it"
                stack.enter_context(storage.locked(self._final.parent, ValueError(busy)))
            self._write_shards()
            self.download_and_prepare(
                download_dir=str((Path(self._scratch) if self._scratch else self._staging) / "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
            if self._scratch:
                self._publish()
            with contextlib.suppress(OSError):
                epath.Path(self._staging).rmtree(missing_ok=True)
        return self._final

    def _publish(self) -> None:
        """Moves the shards, and the local files of TFDS and `_write_side_files`, into the folder in the bucket."""
        local = Path(self.data_dir)
        self._final.mkdir(parents=True, exist_ok=True)
        names = list_shards(local)
        moves = [(s.path(self._staging), self._final / names[s.split][s.number]) for s in self._all_shards]
        kept = {target.name for _, target in moves}
        # Shards of an interrupted build with other options.
        for name in set(storage.names(self._final)) - kept:
            if name.startswith(f"{self.name}-"):
                (self._final / name).unlink()
        storage.in_parallel(lambda move: move[0].replace(move[1]), moves)
        others = {file.name for file in local.iterdir()} - kept
        for name in sorted(others, key=lambda name: name == SUMMARY_FILE):
            storage.copy(local / name, self._final / name)

    def _write_shards(self) -> None:
        for shard in self._all_shards:
            shards.restore(shard, self._staging)
        todo = [shard for shard in self._all_shards if not shard.done]
        total, left = (sum(shard.num_rows for shard in part) for part in (self._all_shards, todo))
        names, multi_label = self._annotations.class_names, self._annotations.multi_label
        title, show = f"{self.name}: records", self.options.progress
        with progress_bar.bar(title=title, total=total, done=total - left, show=show) as bar:
            if self.options.runner == "local":
                files = [file for shard in todo for file in shard.files]
                encoded = shards.encode_files(files, self.encode_options, self.options.num_workers, self._staging)
                serialise = serialiser(names, multi_label)
                for shard in todo:
                    shards.write(shard, self._staging, encoded, serialise, lambda file: bar.update(len(file.rows)))
            elif todo:
                from vivit_jax.data.build import beam

                flags = self._runner_flags
                beam.write_shards(todo, self._staging, self.encode_options, names, flags, bar.update, multi_label)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        tfds.display_progress_bar(False)  # `_write_shards` has its own
        super()._download_and_prepare(dl_manager, download_config)
        self._write_side_files(Path(self.data_dir))

    def _log_download_bytes(self) -> None:
        """Announces nothing, as nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _StagedWriter([shard.path(self._staging) for shard in self._all_shards])

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        del dl_manager  # users download the videos themselves, as the licences require
        return {split: [functools.partial(_count, shard) for shard in self._shards[split]] for split in self._shards}

    def _write_side_files(self, folder: Path) -> None:
        names = self._annotations.class_names
        save_class_names(folder, names)
        rejects = [reject for shard in self._all_shards for reject in shard.rejects]
        storage.write(folder / REJECTS_FILE, tables.to_csv(("split", "video", "start", "end", "reason"), rejects))
        summary = {
            "dataset": self.name,
            "quality": self.encode_options.quality,
            "short_side": self.encode_options.short_side,
            "fps": self.encode_options.fps,
            "multi_label": sorted(self._annotations.multi_label),
            "rejects": len(rejects),
            "reject_reasons": dict(Counter(reason.split(": ", 1)[-1] for *_, reason in rejects).most_common(20)),
            "splits": {},
        }
        if self.dataset.version is not None:
            summary["version"] = self.dataset.version
        for split, planned in self._shards.items():
            videos, positions = [shard.videos for shard in planned], [shard.positions for shard in planned]
            indexed = indexing.assemble(folder, split, videos, names, positions)
            indexed.save()
            summary["splits"][split] = _summarise(indexed, planned, self.dataset.splits.get(split))
            if empty := _classes_without_videos(indexed, planned):
                summary["splits"][split]["classes_without_videos"] = empty
        storage.write(folder / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False))


class _LocalInfo(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does not query Google's bucket of known data sets, where another one may have this name."""


class _StagedWriter(tfds.core.writer.ExampleWriter):
    """Links each shard, which is already written, to the file name that TFDS gives it.

    TFDS adds up file sizes, so that a shard in a bucket is represented by an empty (sparse) file of its size.
    """

    def __init__(self, paths: Sequence[storage.AnyPath]):
        super().__init__(tfds.core.FileFormat.TFRECORD)
        self._paths = iter(paths)

    def write(self, path, examples):
        del examples  # TFDS counts them itself
        shard_path = next(self._paths)
        if storage.is_remote(shard_path):
            Path(path).touch()
            os.truncate(path, storage.size(shard_path))
            return
        try:
            os.link(shard_path, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(shard_path, path)


def _count(shard: shards.Shard) -> Iterator[tuple[str, None]]:
    """Yields one (key, None) per record of a shard, which TFDS counts."""
    return ((f"{shard.split}-{shard.number}-{i}", None) for i in range(shard.num_records))


def _classes_without_videos(split: RecordSplit, planned: Sequence[shards.Shard]) -> dict[str, list[str]]:
    """Returns head -> classes none of whose rows has a video; of the training split also those without rows."""
    empty = {}
    for head, names in split.class_names.items():
        labels = (row.labels[head] for shard in planned for file in shard.files for row in file.rows)
        ids = {i for label in labels for i in (label if isinstance(label, tuple) else (label,))}
        left = set(np.unique(split.labels[head]).tolist())
        of_head = [name for i, name in enumerate(names) if i not in left and (i in ids or split.name == "train")]
        empty |= {head: of_head} if of_head else {}
    return empty


def _summarise(split: RecordSplit, planned: Sequence[shards.Shard], published: int | None) -> dict[str, Any]:
    """Returns the counts of one split; `fps` and `sizes` map each value to its number of videos."""
    seconds = split.num_frames / split.fps
    extremes = {}
    if len(seconds):
        extremes = {"shortest": round(float(seconds.min()), 3), "longest": round(float(seconds.max()), 3)}
    sizes = Counter(zip(split.width.tolist(), split.height.tolist(), strict=True))
    return {
        "rows": sum(shard.num_rows for shard in planned),
        "videos": split.num_videos,
        "published": published,
        "rejects": sum(len(shard.rejects) for shard in planned),
        "frames": int(split.num_frames.sum()),
        "bytes": split.record_bytes,
        "seconds": {"total": round(float(seconds.sum()), 2), **extremes},
        "fps": {f"{rate:g}": count for rate, count in sorted(Counter(split.fps.round(3).tolist()).items())},
        "varying_fps": sum(shard.varying for shard in planned),
        "repaired_time_stamps": sum(shard.repaired for shard in planned),
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.items()},
        "classes": split.class_counts(),
    }
