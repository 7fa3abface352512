"""Annotations and videos -> sharded TFRecords of 16-frame JPEG chunks, their index, and the metadata of a TFDS folder.

Each shard holds its rows in the order of the annotations. (TFDS's own writers would not scale: beyond 1 GB they sort by
128-bit keys spread over 1,000 files, where small integers all fall into the first, which is read into memory.) Shards
are written into a staging folder (`shards.py`), on one machine or several, and get their final names at the end.
"""

import contextlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from vivit_jax.data import annotations, catalog, host_tf
from vivit_jax.data.build import BuildOptions, shards
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE, VERSION, records_folder
from vivit_jax.data.records.split import CHUNK_FRAMES, RecordSplit, assemble, save_class_names
from vivit_jax.utils import storage, tables, terminal

host_tf.load()  # before tfds uses TensorFlow
import tensorflow_datasets as tfds  # noqa: E402


class RecordsBuild:
    """Builds the records of one data set under `data_dir/NAME/1.0.0`; arguments and errors as `build.build`."""

    def __init__(
        self,
        dataset: catalog.DatasetInfo,
        videos: storage.PathLike,
        annotation_folder: storage.PathLike,
        data_dir: storage.PathLike,
        options: BuildOptions,
    ):
        self._dataset, self._options = dataset, options
        self._final = records_folder(dataset.name, data_dir)
        if self._final.exists() and not storage.is_remote(self._final):
            incomplete = f"{self._final} exists, but is incomplete (no {SUMMARY_FILE})"
            raise ValueError(f"{incomplete}: delete it or move it away, or give another --out")
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
        if video_files.first_frames is not None and options.fps is None:
            advice = "give it by --fps=N (config.data.fps), in frames per second"
            raise ValueError(f"{video_files.first_frames} is a folder of frames, without a frame rate: {advice}")
        self._all_shards = list(itertools.chain.from_iterable(self._shards.values()))
        self._staging = storage.path(f"{self._final}.partial-{shards.fingerprint(options)}")

    def run(self) -> storage.AnyPath:
        """Builds the records and returns their folder; shards of an interrupted build are used.

        Of a build on several machines (`options.part`), writes the shards of this one and returns the staging folder.
        """
        self._staging.mkdir(parents=True, exist_ok=True)
        if self._options.part is not None:
            number, count = self._options.part
            self._write_shards(self._all_shards[number - 1 :: count])
            return self._staging
        with contextlib.ExitStack() as stack:
            if not storage.is_remote(self._final):
                busy = f"another build is at work in {self._final.parent}; wait for its end, or stop it"
                stack.enter_context(storage.locked(self._final.parent, ValueError(busy)))
            if (self._final / SUMMARY_FILE).is_file():  # of a build that ended while this one began
                return self._final
            self._write_shards(self._all_shards)
            self._publish()
            with contextlib.suppress(OSError):
                epath.Path(self._staging).rmtree(missing_ok=True)
        for name in storage.names(self._final.parent):
            if name.startswith(f"{self._final.name}.partial-"):
                logging.warning("%s: unfinished, of a build with other options", self._final.with_name(name))
        return self._final

    def _write_shards(self, selected: Sequence[shards.Shard]) -> None:
        for shard in selected:
            shards.restore(shard, self._staging)
        todo = [shard for shard in selected if not shard.done]
        total, left = (sum(shard.num_rows for shard in part) for part in (selected, todo))
        files = [file for shard in todo for file in shard.files]
        encoded = shards.encode_files(files, self._options, self._staging)
        title, show = f"{self._dataset.name}: records", self._options.progress
        with terminal.progress_bar(title=title, total=total, done=total - left, show=show) as bar:
            for shard in todo:
                shards.write(shard, self._staging, encoded, lambda file: bar.update(len(file.rows)))

    def _publish(self) -> None:
        """Gives the shards their final names and writes what belongs beside them, `summary.json` last.

        A local folder is renamed when it is complete. In a bucket that is not possible: the shards are renamed instead.
        """
        remote = storage.is_remote(self._final)
        folder = epath.Path(self._final if remote else self._staging / "complete")
        if not remote:
            folder.rmtree(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self._dataset.name}-"
        moves = [
            (shard.path(self._staging), folder / f"{stem}{split}.tfrecord-{shard.number:05d}-of-{len(planned):05d}")
            for split, planned in self._shards.items()
            for shard in planned
        ]
        # Shards of an interrupted build with other options.
        for name in set(storage.names(folder)) - {target.name for _, target in moves}:
            if name.startswith(stem):
                (folder / name).unlink()
        storage.in_parallel(lambda move: move[0].replace(move[1]) if remote else _link(*move), moves)
        self._write_tfds_metadata(folder)
        self._write_side_files(folder)
        if not remote:
            folder.rename(self._final)

    def _write_tfds_metadata(self, folder: epath.Path) -> None:
        splits = []
        for split, planned in self._shards.items():
            lengths = [len(shard.positions) for shard in planned]
            num_bytes = sum(int((shard.positions[:, 1] + 16).sum()) for shard in planned)  # 16: the framing of a record
            splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes))
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=features(self._annotations.class_names, self._annotations.multi_label),
            split_infos=splits,
            version=VERSION,
            check_data=False,
            description=f"{self._dataset.title}: chunks of {CHUNK_FRAMES} consecutive frames",
            disable_shuffling=True,
        )

    def _write_side_files(self, folder: storage.AnyPath) -> None:
        names = self._annotations.class_names
        save_class_names(folder, names)
        rejects = [reject for shard in self._all_shards for reject in shard.rejects]
        storage.write(folder / REJECTS_FILE, tables.to_csv(("split", "video", "start", "end", "reason"), rejects))
        summary = {
            "dataset": self._dataset.name,
            **self._options.of_records(),
            "multi_label": sorted(self._annotations.multi_label),
            "rejects": len(rejects),
            "reject_reasons": dict(Counter(reason.split(": ", 1)[-1] for *_, reason in rejects).most_common(20)),
            "splits": {},
        }
        if self._dataset.version is not None:
            summary["version"] = self._dataset.version
        for split, planned in self._shards.items():
            videos, positions = [shard.videos for shard in planned], [shard.positions for shard in planned]
            indexed = assemble(folder, split, videos, names, positions)
            indexed.save()
            summary["splits"][split] = _summarise(indexed, planned, self._dataset.splits.get(split))
            if empty := _classes_without_videos(indexed, planned):
                summary["splits"][split]["classes_without_videos"] = empty
        storage.write(folder / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False))


def _link(source: storage.AnyPath, target: storage.AnyPath) -> None:
    """Gives a local shard a second name, so that an interrupted build still has the first."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def features(class_names: Mapping[str, Sequence[str]], multi_label: Collection[str] = ()) -> tfds.features.FeaturesDict:
    """Returns the features of a record, for TFDS: a chunk of consecutive frames and the facts of its video."""
    heads: dict[str, dict[str, Any]] = {}
    for head, names in class_names.items():
        # Made unique, as TFDS requires; in some data sets two classes have the same name.
        seen = [names[:i].count(name) for i, name in enumerate(names)]
        unique = [f"{name} ({before + 1})" if before else name for name, before in zip(names, seen, strict=True)]
        label = tfds.features.ClassLabel(names=unique)
        if head in multi_label:
            heads.setdefault("labels", {})[head] = tfds.features.Sequence(label)
        else:
            heads.setdefault("label", {})[head] = label
    integers = dict.fromkeys(("row", "chunk", "num_frames", "height", "width"), np.int64)
    frames = tfds.features.Sequence(tfds.features.Image(encoding_format="jpeg"))
    facts = {"video_id": tfds.features.Text(), "fps": np.float32, **integers}
    return tfds.features.FeaturesDict({**facts, **heads, "frames": frames})


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
        "published": published,
        "rejects": sum(len(shard.rejects) for shard in planned),
        "seconds": {"total": round(float(seconds.sum()), 2), **extremes},
        "fps": {f"{rate:g}": count for rate, count in sorted(Counter(split.fps.round(3).tolist()).items())},
        "varying_fps": sum(shard.varying for shard in planned),
        "repaired_time_stamps": sum(shard.repaired for shard in planned),
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.items()},
        **split.counts(),
    }
