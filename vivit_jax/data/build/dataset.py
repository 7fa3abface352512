"""Builds the records of a data set, or finds them: `build`, and `prepare`, which training calls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from vivit_jax.data import annotations, catalog, moving_digits
from vivit_jax.data.paths import SUMMARY_FILE, records_folder
from vivit_jax.utils import storage


def build(
    name: str,
    videos: storage.Place,
    annotation_folder: storage.Place | None,
    out: storage.Place,
    quality: int = 85,
    num_workers: int | None = None,
    progress: bool = True,
    *,
    kind: str | None = None,
    fps: float | None = None,
    short_side: int | None = None,
    splits: Sequence[str] | None = None,
    runner: str = "local",
    runner_flags: Sequence[str] = (),
    label_separator: str | None = None,
) -> storage.AnyPath:
    """Makes the records of data set `name` in `out/NAME/1.0.0` and returns that folder; done builds are not redone.

    Args:
      name: in the catalog, or with `kind` any other.
      videos, annotation_folder: where the files are; the annotations of one's own data lie with the videos where None.
      out: folder for the records. Each of the three may lie in a bucket (gs://).
      quality: of the JPEGs, 1 to 95.
      num_workers: decoding processes; None for one a core, 0 for this process.
      progress: show a progress bar.
      kind: "folder" or "csv" for one's own data, see `catalog.custom`.
      fps: frames per second to keep at most; None for all of the source's. The frame kept for each point in time is the
        last at or before it, and none is kept twice.
      short_side: pixels that the shorter side has at most; None for the data set's own.
      splits: those to build; None for all.
      runner: "local" for processes of this machine, "direct" for Beam on this machine, or one of Beam's runners.
      runner_flags: of Beam.
      label_separator: ";" or "|" where a CSV gives several labels of a video in one field, see `readers.own`.

    Raises:
      ValueError: unknown data set or split, a value outside its limits, records of another form there already.
      annotations.MissingDataError, annotations.AnnotationError: see `annotations`.
      ImportError: a runner of Beam's without Apache Beam.

    Files that cannot be used are no error here: they are listed with the reason in `rejects.csv`.
    """
    dataset = catalog.custom(name, kind, label_separator=label_separator) if kind else catalog.get(name)
    if label_separator is not None and not kind:
        raise ValueError(f"--label_separator={label_separator} is for a CSV of one's own, not for {name}")
    if annotation_folder is None and not kind:
        raise ValueError(f"{name} has annotation files of its own: --annotations=DIR says where they are")
    if runner == "local" and runner_flags:
        raise ValueError(f"{' '.join(runner_flags)}: flags after -- are of a runner of Beam's; --runner says which")
    if short_side is not None:
        dataset = dataclasses.replace(dataset, short_side=short_side)
    from vivit_jax.data.video import encode

    form = encode.EncodeOptions(dataset.short_side, quality, fps)
    # Workers elsewhere have another working directory.
    videos, out = storage.absolute(videos), storage.absolute(out)
    folder = records_folder(name, out)
    if (folder / SUMMARY_FILE).is_file():
        _check_same(folder, form, splits, label_separator)
        return folder
    from vivit_jax.data.build import tfds_builder  # only here: TensorFlow takes seconds to load

    records = tfds_builder.VideoRecords(
        dataset,
        videos,
        annotation_folder or videos,
        out,
        form,
        splits,
        num_workers,
        progress,
        runner,
        runner_flags,
    )
    return records.build()


def _check_same(folder: storage.AnyPath, form, splits: Sequence[str] | None, label_separator: str | None) -> None:
    """Raises ValueError where the finished records in `folder` are not what is asked for."""
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    wrong = [
        f"of {words} {stored}, asked for is {asked}"
        for words, stored, asked in (
            ("JPEG quality", summary["quality"], form.quality),
            ("short side", summary["short_side"], form.short_side),
            ("frame rate", summary.get("fps") or "the source's", form.fps or "the source's"),
            ("labels of a head", _several(summary.get("multi_label")), _several(label_separator)),
        )
        if stored != asked
    ]
    absent = [split for split in splits or () if split not in summary["splits"]]
    if absent:
        wrong.append(f"of split {', '.join(summary['splits'])}, asked for is {', '.join(absent)} too")
    if wrong:
        raise ValueError(f"{folder} holds records {'; '.join(wrong)}: give another --out, or delete that folder")


def _several(given) -> str:
    return "several at once" if given else "one"


def prepare(
    name: str, data_dir: storage.Place, num_workers: int | None = None, progress: bool = True, **generator: int
) -> storage.AnyPath:
    """The folder with the records of data set `name`; made where they are absent and can be made.

    moving_digits is generated and built. The others of the catalog are built where their files are found in
    `data_dir/NAME/videos` and `data_dir/NAME/annotations`. One's own must have been built.

    Args:
      name: in the catalog, or of records that are there.
      data_dir: folder of all data sets; may lie in a bucket (gs://).
      num_workers, progress: as in `build`.
      **generator: `train`, `validation`, `seed` of `moving_digits.generate`.

    Raises:
      annotations.MissingDataError: neither records nor the files to make them; says what belongs where.
      ValueError: not in the catalog and no records there; moving_digits there with other sizes or seed.
    """
    folder = records_folder(name, data_dir)
    dataset = catalog.of_records(name, folder)
    source = storage.path(data_dir) / name
    if name == "moving_digits":
        if not (folder / SUMMARY_FILE).is_file() or (generator and (source / moving_digits.MANIFEST).is_file()):
            moving_digits.generate(source, num_workers=num_workers, progress=progress, **generator)
    elif generator:
        raise ValueError(f"{', '.join(generator)}: only moving_digits is generated, {name} is not")
    if (folder / SUMMARY_FILE).is_file():
        return folder
    videos, annotation_folder = source / "videos", source / "annotations"
    if not (videos.is_dir() and annotation_folder.is_dir()):
        message = annotations.missing_message(dataset, videos, annotation_folder)
        raise annotations.MissingDataError(f"no records in {folder}, and nothing to make them from.\n{message}")
    return build(name, videos, annotation_folder, data_dir, num_workers=num_workers, progress=progress)
