"""TFDS builder: annotations + videos -> sharded TFRecords of 16-frame chunks of JPEG, and their index.

The builder is a `tfds.core.ShardBasedBuilder`: one example is one chunk, each shard holds its rows in the order of the
annotations. `GeneratorBasedBuilder` with `disable_shuffling` and integer keys can hold a chunk as an example too, but
not at scale: beyond 1 GB it sorts by spreading 128-bit keys over 1,000 files, small integers all land in the first, and
that one is then read into memory whole. TFDS's own Beam writers shuffle by such keys as well; here Beam is given whole
shards (`beam.py`).

The shards are written first (`shards.py`), by this process and its workers or by Beam; TFDS then gives them their
names and writes its descriptions. The result is an ordinary TFDS folder (`tfds.builder_from_directory` reads it) with
three files of our own beside it: the index (`index.py`), `rejects.csv` and `summary.json`. In a bucket, where a folder
cannot be renamed at once and a link does not exist, TFDS works in a temporary folder here with empty files of the
shards' sizes; its descriptions are copied to the bucket, the shards renamed there, and `summary.json` comes last.
"""

from __future__ import annotations

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

from vivit_jax.data import annotations, catalog
from vivit_jax.data.build import shards
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE, VERSION, records_folder
from vivit_jax.data.records import indexing
from vivit_jax.data.records.split import CHUNK_FRAMES, RecordSplit, list_shards, save_class_names
from vivit_jax.data.video import encode
from vivit_jax.utils import progress_bar, storage, tables

import tensorflow_datasets as tfds  # isort: skip: after `host_tf`, which sets TensorFlow up
from vivit_jax.data.records.schema import features, serialiser


class VideoRecords(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Builds the records of one data set under `data_dir/NAME/1.0.0`.

    Args:
      dataset: of the data set.
      videos, annotation_folder: where they are.
      data_dir: where the folder NAME is made.
      form: what is stored of a video.
      splits: those to build; None for all that the annotations have.
      num_workers: processes that decode; None for one a core, 0 for this process.
      progress: show a progress bar.
      runner: "local" for processes of this machine; else a runner of Beam's, see `beam.write_shards`.
      runner_flags: of Beam.

    Raises:
      annotations.MissingDataError, annotations.AnnotationError: see there.
      ValueError: a split that the annotations do not have, or flags that do not fit the runner.
      ImportError: a runner of Beam's without Apache Beam.
    """

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded, so there are no checksums of downloads to look for beside this file.
    url_infos: ClassVar[dict] = {}

    def __init__(
        self,
        dataset: catalog.DatasetInfo,
        videos: storage.Place,
        annotation_folder: storage.Place,
        data_dir: storage.Place,
        form: encode.EncodeOptions,
        splits: Sequence[str] | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        runner: str = "local",
        runner_flags: Sequence[str] = (),
    ):
        self.dataset, self.form = dataset, form
        self._workers, self._progress = num_workers, progress
        self._runner = runner
        if runner != "local":
            from vivit_jax.data.build import beam  # only here: Beam is an extra

            beam.load()  # that it is missing is said before anything is read
            self._runner_flags = beam.runner_flags(runner, num_workers, runner_flags)
        self._annotations = annotations.read(dataset, annotation_folder)
        there = self._annotations.rows
        absent = [split for split in splits or () if split not in there]
        if absent:
            raise ValueError(
                f"{dataset.name} has no split {', '.join(absent)}; the annotations have {', '.join(there)}"
            )
        video_files = annotations.VideoFiles(dataset, videos)
        video_files.check(row for rows in there.values() for row in rows)
        self._shards = {
            split: shards.plan(split, rows, video_files, dataset.rows_per_shard)
            for split, rows in there.items()
            if splits is None or split in splits
        }
        self.name = dataset.name
        self._final = records_folder(dataset.name, data_dir)
        self._scratch = tempfile.mkdtemp(prefix="vivit_jax-") if storage.is_remote(data_dir) else None
        super().__init__(data_dir=self._scratch or data_dir)
        self._staging = storage.path(f"{self._final}.partial-{shards.fingerprint(self._all_shards(), form)}")

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            features=features(self._annotations.class_names, self._annotations.multi_label),
            description=f"{self.dataset.title}: chunks of {CHUNK_FRAMES} consecutive frames",
            disable_shuffling=True,
        )

    def build(self) -> storage.AnyPath:
        """Makes the records; shards that an interrupted run has finished are taken over. Returns their folder."""
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
            self._write_shards()
            self.download_and_prepare(
                download_dir=str((Path(self._scratch) if self._scratch else self._staging) / "downloads"),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
            if self._scratch:
                self._publish()
        finally:
            if self._scratch:
                shutil.rmtree(self._scratch, ignore_errors=True)
        storage.remove_tree(self._staging)
        return self._final

    def _publish(self) -> None:
        """Puts the shards and what TFDS and `_write_side_files` wrote here into the folder in the bucket."""
        made = Path(self.data_dir)
        self._final.mkdir(parents=True, exist_ok=True)
        names = list_shards(made)
        moves = [
            (shard.staged(self._staging), self._final / names[split][shard.number])
            for split, planned in self._shards.items()
            for shard in planned
        ]
        kept = {place.name for _, place in moves}
        # What an interrupted build with other shards had put there.
        for name in set(storage.names(self._final)) - kept:
            if name.startswith(f"{self.name}-"):
                (self._final / name).unlink()
        storage.move(moves)
        others = {file.name for file in made.iterdir()} - kept
        for name in sorted(others, key=lambda name: name == SUMMARY_FILE):
            storage.put(made / name, self._final / name)

    def _all_shards(self) -> list[shards.Shard]:
        return list(itertools.chain.from_iterable(self._shards.values()))

    def _write_shards(self) -> None:
        everything = self._all_shards()
        for shard in everything:
            shards.restore(shard, self._staging)
        todo = [shard for shard in everything if not shard.done]
        total, left = (sum(shard.num_rows for shard in part) for part in (everything, todo))
        names = self._annotations.class_names
        with progress_bar.bar(
            title=f"{self.name}: records", total=total, done=total - left, show=self._progress
        ) as bar:
            if self._runner == "local":
                encoded = shards.encode_files((f for shard in todo for f in shard.files), self.form, self._workers)
                serialise = serialiser(names, self._annotations.multi_label)
                for shard in todo:
                    shards.write(shard, self._staging, encoded, serialise, lambda file: bar.update(len(file.rows)))
            elif todo:
                from vivit_jax.data.build import beam

                several = self._annotations.multi_label
                beam.write_shards(todo, self._staging, self.form, names, self._runner_flags, bar.update, several)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        tfds.display_progress_bar(False)  # ours has counted the videos
        super()._download_and_prepare(dl_manager, download_config)
        self._write_side_files(Path(self.data_dir))

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from announcing a download of unknown size, and the like below."""

    def _log_download_done(self) -> None:
        """Says nothing; `build` reports what was made."""

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _StagedWriter(self._staging, self._all_shards())

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        del dl_manager  # nothing is downloaded: the licences of the data sets ask users to do that themselves
        return {
            split: [functools.partial(_count, shard) for shard in planned] for split, planned in self._shards.items()
        }

    def _write_side_files(self, folder: Path) -> None:
        names = self._annotations.class_names
        save_class_names(folder, names)
        rejects = [reject for shard in self._all_shards() for reject in shard.rejects]
        text = tables.to_csv(("split", "video", "start", "end", "reason"), rejects)
        storage.write(folder / REJECTS_FILE, text)
        summary = {
            "dataset": self.name,
            "quality": self.form.quality,
            "short_side": self.form.short_side,
            "fps": self.form.fps,
            "multi_label": sorted(self._annotations.multi_label),
            "rejects": len(rejects),
            "reject_reasons": dict(Counter(reason.split(": ", 1)[-1] for *_, reason in rejects).most_common(20)),
            "splits": {},
        }
        for split, planned in self._shards.items():
            videos, positions = [shard.videos for shard in planned], [shard.positions for shard in planned]
            indexed = indexing.assemble(folder, split, videos, names, positions=positions)
            indexed.save()
            summary["splits"][split] = _summarise(indexed, planned, self.dataset.splits.get(split))
        storage.write(folder / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False))


class _LocalInfo(tfds.core.DatasetInfo):
    """The facts TFDS keeps of a data set, from this machine only."""

    def initialize_from_bucket(self) -> None:
        """Does not ask Google's bucket of known data sets, where another one may go by this name."""


class _StagedWriter(tfds.core.writer.ExampleWriter):
    """Gives each shard, which is written by now, the name that TFDS wants; their records are in it.

    For a shard in a bucket an empty file (with a hole, which takes no room) of its size stands in: TFDS adds sizes up.
    """

    def __init__(self, staging: storage.AnyPath, written: Sequence[shards.Shard]):
        super().__init__(tfds.core.FileFormat.TFRECORD)
        self._staged = iter([shard.staged(staging) for shard in written])

    def write(self, path, examples):
        del examples  # TFDS counts them by itself
        staged = next(self._staged)
        if storage.is_remote(staged):
            Path(path).touch()
            os.truncate(path, storage.size(staged))
            return
        try:
            os.link(staged, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(staged, path)


def _count(shard: shards.Shard) -> Iterator[tuple[str, None]]:
    """TFDS counts a shard's records by taking them: as many `None`s as there are."""
    return ((f"{shard.split}-{shard.number}-{i}", None) for i in range(shard.num_chunks))


def _summarise(split: RecordSplit, planned: Sequence[shards.Shard], published: int | None) -> dict[str, Any]:
    """Counts of one split; sizes in bytes, durations in seconds, frame rates and heights as value -> videos."""
    seconds = split.num_frames / split.fps
    found = len(seconds) > 0
    return {
        "rows": sum(shard.num_rows for shard in planned),
        "videos": split.num_videos,
        "published": published,
        "rejects": sum(len(shard.rejects) for shard in planned),
        "frames": int(split.num_frames.sum()),
        "bytes": split.record_bytes,
        "seconds": {"total": round(float(seconds.sum()), 2)}
        | ({"shortest": round(float(seconds.min()), 3), "longest": round(float(seconds.max()), 3)} if found else {}),
        "fps": {f"{rate:g}": count for rate, count in sorted(Counter(split.fps.round(3).tolist()).items())},
        "varying_fps": sum(shard.varying for shard in planned),
        "repaired_time_stamps": sum(shard.repaired for shard in planned),
        "sizes": {
            f"{width}x{height}": count
            for (width, height), count in Counter(zip(split.width.tolist(), split.height.tolist(), strict=True)).items()
        },
        "classes": split.class_counts(),
    }
