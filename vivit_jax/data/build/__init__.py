"""Records of a data set from its annotation files and videos: `build`, and `prepare`, which builds what is missing."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from vivit_jax.data import annotations, catalog, moving_digits
from vivit_jax.data.paths import REJECTS_FILE, SUMMARY_FILE, read_summary, records_folder
from vivit_jax.data.video.encode import EncodeOptions
from vivit_jax.utils import storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(EncodeOptions):
    """How records are built. `short_side` None: that of the data set."""

    kind: str | None = None  # "folder" or "csv" for a custom data set; None for a data set of the catalog
    label_separator: str | None = None  # ";" or "|" in the multi-label fields of a CSV
    columns: Sequence[str] | None = None  # of a CSV, in order: path, label, ...; None: detected
    splits: Sequence[str] | None = None  # the splits to build; None: all
    num_workers: int | None = None  # decoding processes; None: one per core, 0: none but this one
    part: tuple[int, int] | None = None  # (k, n): only every n-th shard, from the k-th on; of a build on n machines
    progress: bool = True

    def of_records(self) -> dict[str, Any]:
        """Returns the fields that decide the content of the records of a split, as in `summary.json`."""
        run = ("splits", "num_workers", "part", "progress")
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in run}
        return fields | {"columns": self.columns and ",".join(self.columns)}


def build(
    name: str,
    videos: storage.PathLike,
    annotation_folder: storage.PathLike | None,
    out: storage.PathLike,
    options: BuildOptions | None = None,
) -> storage.AnyPath:
    """Builds the records of data set `name` in `out/NAME/1.0.0`, unless they exist, and returns that folder.

    Files that cannot be used are no error: `rejects.csv` lists them with the reason. An interrupted build continues at
    the shard where it stopped. Existing records of other options are an error (ValueError).

    With `options.kind`, `name` is not of the catalog, and `annotation_folder` may be None: the videos' folder. Each of
    the three folders may be in a bucket (gs://). With `options.part`, only writes a part of the shards, which the same
    build without it uses, and returns their folder.
    """
    options = options or BuildOptions()
    if options.kind:
        dataset = catalog.custom(name, options.kind, options.label_separator, options.columns)
    else:
        dataset = catalog.get(name)
        if (options.label_separator, options.columns) != (None, None):
            raise ValueError(f"--label_separator and --columns are for a custom CSV, not for {name}")
        if annotation_folder is None:
            raise ValueError(f"{name} has annotation files: give their folder by --annotations=DIR")
    if options.short_side is None:
        options = dataclasses.replace(options, short_side=dataset.short_side)
    # Unfinished shards are found by the paths of their videos.
    videos, out = storage.absolute(videos), storage.absolute(out)
    folder = records_folder(name, out)
    if not (folder / SUMMARY_FILE).is_file():
        from vivit_jax.data.build.records import RecordsBuild  # TensorFlow takes seconds: another build may end in them
    if (folder / SUMMARY_FILE).is_file():
        _check_same(folder, options)
        return folder
    built = RecordsBuild(dataset, videos, annotation_folder or videos, out, options).run()
    if options.part is not None:
        return built
    _check_same(folder, options)  # another build may have ended first
    log, summary = logging.getLogger(__name__), read_summary(folder)
    for split, counts in summary["splits"].items():
        for head, names in counts.get("classes_without_videos", {}).items():
            shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
            log.warning("%d classes of %s have no video in split %s: %s", len(names), head, split, shown)
    for reason, count in list(summary["reject_reasons"].items())[:3]:
        log.warning("Videos rejected (%s): %d, %s", folder / REJECTS_FILE, count, reason)
    return folder


def _check_same(folder: storage.AnyPath, options: BuildOptions) -> None:
    summary = read_summary(folder)
    differences = [
        f"{name} {summary[name]} ({value} requested)"
        for name, value in options.of_records().items()
        if summary.get(name, value) != value  # older summaries do not have all of them
    ]
    if absent := [split for split in options.splits or () if split not in summary["splits"]]:
        differences.append(f"split {', '.join(summary['splits'])} ({', '.join(absent)} requested too)")
    if differences:
        way_out = "give another --out (config.data.dir), or delete that folder"
        raise ValueError(f"{folder} holds records with {'; '.join(differences)}: {way_out}")


def prepare(name: str, data_dir: storage.PathLike) -> storage.AnyPath:
    """Returns the folder of the records of data set `name`, and builds them first if they are absent.

    moving_digits is generated. The others of the catalog are built from the files in `data_dir/NAME/videos` and
    `data_dir/NAME/annotations`; without these, MissingDataError says which belong where. Custom records must exist.
    """
    folder = records_folder(name, data_dir)
    dataset = catalog.of_records(name, folder)
    if (folder / SUMMARY_FILE).is_file():
        return folder
    source = storage.path(data_dir) / name
    if name == "moving_digits":
        moving_digits.generate(source)
    videos, annotation_folder = source / "videos", source / "annotations"
    if not (videos.is_dir() and annotation_folder.is_dir()):
        problem = f"no records in {folder}, and no files to build them from"
        raise annotations.MissingDataError(problem, dataset, annotations=annotation_folder, videos=videos)
    return build(name, videos, annotation_folder, data_dir)
