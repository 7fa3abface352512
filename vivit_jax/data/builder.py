"""TFDS builder: annotations + videos -> sharded TFRecords of 16-frame chunks of JPEG, and their index.

The builder is a `tfds.core.ShardBasedBuilder`: one example is one chunk, each shard is written from its own iterator
in the order of the annotations. `GeneratorBasedBuilder` with `disable_shuffling` and integer keys can hold a chunk as
an example too, but not at scale: beyond 1 GB it sorts by spreading 128-bit keys over 1,000 files, small integers all
land in the first, and that one is then read into memory whole.

The result is an ordinary TFDS folder (`tfds.builder_from_directory` reads it) with three files of our own beside it:
the index (`index.py`), `rejects.csv` and `summary.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vivit_jax.data import annotations, catalog, encode, index, progress_bar, workers
from vivit_jax.data.build import VERSION
from vivit_jax.data.host_tf import tf

import tensorflow_datasets as tfds  # isort: skip: after `host_tf`, which sets TensorFlow up

# Part of the fingerprint of half-done builds: raised when the records' form changes.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class _File:
    """One video file with the rows that lie in it; `path` None where it was not found."""

    path: Path | None
    rows: Sequence[annotations.Row]
    segments: Sequence[tuple[float | None, float | None]]


@dataclasses.dataclass
class _Shard:
    """One shard: the files that go into it and, once it is written, what it holds."""

    split: str
    number: int
    files: list[_File]
    videos: list[index.VideoEntry] = dataclasses.field(default_factory=list)
    rejects: list[tuple[str, str, str, str, str]] = dataclasses.field(default_factory=list)
    done: bool = False

    @property
    def num_chunks(self) -> int:
        return sum(-(-video.num_frames // index.CHUNK_FRAMES) for video in self.videos)


class VideoRecords(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Builds the records of one data set of the catalog under `data_dir/NAME/1.0.0`.

    Args:
      facts: of the data set.
      videos, annotation_folder: where they are.
      data_dir: where the folder NAME is made.
      quality: of the JPEGs, 1 to 95.
      num_workers: processes that decode; None for one a core, 0 for this process.
      progress: show a progress bar.

    Raises:
      annotations.MissingDataError, annotations.AnnotationError: see there.
      ValueError: a quality outside 1 to 95.
    """

    VERSION = tfds.core.Version(VERSION)
    # Nothing is downloaded, so there are no checksums of downloads to look for beside this file.
    url_infos: ClassVar[dict] = {}

    def __init__(
        self,
        facts: catalog.DatasetFacts,
        videos: str | Path,
        annotation_folder: str | Path,
        data_dir: str | Path,
        quality: int = 85,
        num_workers: int | None = None,
        progress: bool = True,
    ):
        if not 1 <= quality <= 95:
            raise ValueError(f"JPEG quality is {quality}; it must be 1 to 95")
        self.facts, self.quality = facts, quality
        self._workers, self._progress = num_workers, progress
        self._annotations = annotations.read(facts, annotation_folder)
        finder = annotations.VideoFinder(facts, videos)
        self._shards = {
            split: _plan_shards(split, rows, finder, facts.rows_per_shard)
            for split, rows in self._annotations.rows.items()
        }
        self.name = facts.name
        super().__init__(data_dir=data_dir)
        self._staging = Path(f"{self.data_dir}.partial-{self._fingerprint()}")

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            head: tfds.features.ClassLabel(names=_unique(names))
            for head, names in self._annotations.class_names.items()
        }
        features = tfds.features.FeaturesDict(
            {
                "video_id": tfds.features.Text(),
                "video_index": tf.int64,
                "chunk": tf.int64,
                "num_frames": tf.int64,
                "fps": tf.float32,
                "height": tf.int64,
                "width": tf.int64,
                "label": labels,
                "frames": tfds.features.Sequence(tfds.features.Image(encoding_format="jpeg")),
            }
        )
        return _LocalInfo(
            builder=self,
            features=features,
            description=f"{self.facts.title}: chunks of {index.CHUNK_FRAMES} consecutive frames",
            disable_shuffling=True,
        )

    def build(self) -> Path:
        """Makes the records; shards that an interrupted run has finished are taken over. Returns their folder."""
        self._staging.mkdir(parents=True, exist_ok=True)
        self.download_and_prepare(
            download_dir=str(self._staging / "downloads"),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        shutil.rmtree(self._staging, ignore_errors=True)
        return Path(self.data_dir)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        tfds.display_progress_bar(False)  # ours counts videos over all shards
        super()._download_and_prepare(dl_manager, download_config)
        self._write_side_files(Path(self.data_dir))

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from announcing a download of unknown size, and the like below."""

    def _log_download_done(self) -> None:
        """Says nothing; `build` reports what was made."""

    def _example_writer(self) -> tfds.core.writer.ExampleWriter:
        return _StagedWriter(self._staging, self._shards)

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        del dl_manager  # nothing is downloaded: the licences of the data sets ask users to do that themselves
        shards = [shard for split in self._shards.values() for shard in split]
        for shard in shards:
            _restore(self._staging, shard)
        todo = [file for shard in shards if not shard.done for file in shard.files]
        encoded = self._encode(todo, sum(len(file.rows) for shard in shards for file in shard.files))
        return {
            split: [functools.partial(self._examples, shard, shards[:i], encoded) for i, shard in enumerate(shards)]
            for split, shards in self._shards.items()
        }

    def _encode(self, files: Sequence[_File], total: int) -> Iterator[list[encode.Segment | str]]:
        tasks = [
            encode.FileTask(file.path, file.segments, self.facts.short_side, self.quality)
            for file in files
            if file.path
        ]
        results = workers.ordered_map("vivit_jax.data.encode:encode_file", tasks, self._workers)
        left = sum(len(file.rows) for file in files)
        with progress_bar.bar(
            title=f"{self.name}: records", total=total, done=total - left, show=self._progress
        ) as bar:
            for file in files:
                if file.path is None:
                    yield ["no such video in the videos' folder"] * len(file.rows)
                else:
                    result = next(results)
                    died = isinstance(result, workers.WorkerError)
                    yield [f"{file.path}: the decoder crashed: {result}"] * len(file.rows) if died else result
                bar.update(len(file.rows))

    def _examples(self, shard: _Shard, before: Sequence[_Shard], encoded: Iterator) -> Iterator[tuple[str, Any]]:
        """The chunks of a shard. One that is already written is only counted: as many `None`s as it has records."""
        if shard.done:
            yield from ((f"{shard.split}-{shard.number}-{i}", None) for i in range(shard.num_chunks))
            return
        number = sum(len(other.videos) for other in before)
        for file in shard.files:
            for row, result in zip(file.rows, next(encoded), strict=True):
                if isinstance(result, str):
                    shard.rejects.append((shard.split, row.video, _text(row.start), _text(row.end), result))
                    continue
                shard.videos.append(
                    index.VideoEntry(
                        row.video, len(result.frames), result.fps, result.height, result.width, dict(row.labels)
                    )
                )
                for chunk, frames in enumerate(_chunks(result.frames)):
                    yield f"{shard.split}-{number}-{chunk}", {
                        "video_id": row.video, "video_index": number, "chunk": chunk, "fps": result.fps,
                        "num_frames": len(result.frames), "height": result.height, "width": result.width,
                        "label": dict(row.labels), "frames": [io.BytesIO(jpeg) for jpeg in frames],
                    }  # fmt: skip
                number += 1

    def _fingerprint(self) -> str:
        """Of all that decides what is in which shard; a half-done build of anything else is not continued."""
        state = [_FORMAT, self.quality, self.facts.short_side, self.facts.rows_per_shard]
        for split, shards in self._shards.items():
            state += [
                split,
                [[str(f.path), f.segments, [dict(r.labels) for r in f.rows]] for s in shards for f in s.files],
            ]
        return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()[:12]

    def _write_side_files(self, folder: Path) -> None:
        index.save_class_names(folder, self._annotations.class_names)
        rejects = [reject for shards in self._shards.values() for shard in shards for reject in shard.rejects]
        (folder / "rejects.csv").write_text(
            annotations.to_csv(("split", "video", "start", "end", "reason"), rejects), encoding="utf-8"
        )
        summary = {
            "dataset": self.name,
            "quality": self.quality,
            "short_side": self.facts.short_side,
            "rejects": len(rejects),
            "reject_reasons": dict(Counter(reason.split(": ", 1)[-1] for *_, reason in rejects).most_common(20)),
            "splits": {},
        }
        for split, shards in self._shards.items():
            indexed = index.assemble(folder, split, [s.videos for s in shards], self._annotations.class_names)
            indexed.save()
            summary["splits"][split] = _summarise(
                indexed, sum(len(s.rejects) for s in shards), self.facts.splits.get(split)
            )
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")


class _LocalInfo(tfds.core.DatasetInfo):
    """The facts TFDS keeps of a data set, from this machine only."""

    def initialize_from_bucket(self) -> None:
        """Does not ask Google's bucket of known data sets, where another one may go by this name."""


class _StagedWriter(tfds.core.writer.ExampleWriter):
    """Writes each shard beside the final folder first, whole or not at all, so that an interrupted build continues."""

    def __init__(self, staging: Path, shards: Mapping[str, Sequence[_Shard]]):
        super().__init__(tfds.core.FileFormat.TFRECORD)
        self._staging = staging
        self._waiting = itertools.chain.from_iterable(shards.values())

    def write(self, path, examples):
        shard = next(self._waiting)
        staged = _staged(self._staging, shard)
        if not shard.done:
            with tf.io.TFRecordWriter(f"{staged}.part") as writer:
                for _, data in examples:
                    writer.write(data)
            os.replace(f"{staged}.part", staged)
            # The notes come last: a shard with notes is whole.
            notes = {"videos": [dataclasses.asdict(video) for video in shard.videos], "rejects": shard.rejects}
            staged.with_suffix(".json.part").write_text(json.dumps(notes), encoding="utf-8")
            os.replace(staged.with_suffix(".json.part"), staged.with_suffix(".json"))
            shard.done = True
        try:
            os.link(staged, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(staged, path)


def _staged(staging: Path, shard: _Shard) -> Path:
    return staging / f"{shard.split}-{shard.number:05d}.tfrecord"


def _restore(staging: Path, shard: _Shard) -> None:
    """Takes over what an interrupted run wrote of this shard."""
    notes = _staged(staging, shard).with_suffix(".json")
    if notes.exists() and _staged(staging, shard).exists():
        stored = json.loads(notes.read_text(encoding="utf-8"))
        shard.videos = [index.VideoEntry(**video) for video in stored["videos"]]
        shard.rejects = [tuple(reject) for reject in stored["rejects"]]
        shard.done = True


def _plan_shards(
    split: str, rows: Sequence[annotations.Row], finder: annotations.VideoFinder, rows_per_shard: int
) -> list[_Shard]:
    """Rows of one file stay together, so that it is decoded once; else the order is that of the annotations."""
    grouped: dict[Any, list[tuple[annotations.Row, Any]]] = {}
    for number, row in enumerate(rows):
        found = finder.find(row)
        grouped.setdefault(found[0] if found else number, []).append((row, found))
    files = [
        _File(
            path=group[0][1][0] if group[0][1] else None,
            rows=[row for row, _ in group],
            segments=[found[1:] if found else (None, None) for _, found in group],
        )
        for group in grouped.values()
    ]
    shards, open_rows = [], rows_per_shard
    for file in files:
        if open_rows >= rows_per_shard:
            shards.append(_Shard(split, len(shards), []))
            open_rows = 0
        shards[-1].files.append(file)
        open_rows += len(file.rows)
    return shards


def _chunks(frames: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(frames), index.CHUNK_FRAMES):
        yield frames[start : start + index.CHUNK_FRAMES]


def _unique(names: Sequence[str]) -> list[str]:
    """TFDS wants class names to differ; some data sets name two classes alike, and they stay two."""
    seen: Counter = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def _text(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g}"


def _summarise(split: index.RecordSplit, rejects: int, published: int | None) -> dict[str, Any]:
    seconds = split.num_frames / split.fps
    classes = {
        head: {split.class_names[head][number]: count for number, count in sorted(Counter(ids.tolist()).items())}
        for head, ids in split.labels.items()
    }
    return {
        "videos": split.num_videos,
        "published": published,
        "rejects": rejects,
        "frames": int(split.num_frames.sum()),
        "bytes": split.record_bytes,
        "seconds": {"total": round(float(seconds.sum()), 2)}
        | (
            {"shortest": round(float(seconds.min()), 3), "longest": round(float(seconds.max()), 3)}
            if len(seconds)
            else {}
        ),
        "fps": {f"{rate:g}": count for rate, count in sorted(Counter(split.fps.round(3).tolist()).items())},
        "classes": classes,
    }
