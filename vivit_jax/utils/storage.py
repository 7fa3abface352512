"""Files on this machine's disks or in a bucket, by one interface.

What the user gives as a path may be a URI that `etils.epath` knows (gs://, s3://, ...): it is then read and written
through it, and so through `tf.io.gfile`. Everything else is a `pathlib.Path`, with all that a disk can do and a bucket
cannot (links, renaming whole folders). What both can do is called in the same way: `path / name`, `exists`, `is_file`,
`is_dir`, `glob`, `mkdir`, `open`, `read_bytes`, `read_text`; where they differ, there is a function here.

A request to a bucket takes tens of milliseconds, so that what is asked of many files is asked once, or in parallel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

Place = str | os.PathLike
# A file or folder: `pathlib.Path`, or of a bucket `epath.Path`, which has the same methods.
AnyPath = Path | epath.Path
_REQUESTS = 32  # to a bucket, at the same time


def is_remote(place: Place) -> bool:
    """Whether it is a URI, and so not on a disk of this machine."""
    return "://" in os.fspath(place)


def path(place: Place) -> AnyPath:
    """The path that `place` means.

    Raises:
      ValueError: a URI of a kind that epath does not know.
    """
    text = os.fspath(place)
    if "://" not in text:
        return Path(text)
    try:
        return epath.Path(text)
    except KeyError as error:
        raise ValueError(
            f"{text}: {error.args[0]} is no kind of storage that is known here; gs:// (Google Cloud Storage) is, and "
            "what else etils.epath and TensorFlow's file systems have"
        ) from None


def under(folder: Place, name: str) -> AnyPath:
    """`name` under `folder`; by itself where it is absolute or a URI."""
    return path(name) if is_remote(name) or os.path.isabs(name) else path(folder) / name


def absolute(place: Place) -> AnyPath:
    """The path that means the same in every working directory."""
    found = path(place)
    return found if is_remote(found) else found.absolute()


def names(folder: Place) -> list[str]:
    """Names of the files and folders in a folder, sorted; none where it does not exist."""
    folder = path(folder)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def size(file: Place) -> int:
    """Bytes of a file.

    Raises:
      FileNotFoundError: no such file.
    """
    file = path(file)
    return file.stat().length if is_remote(file) else file.stat().st_size


def sizes(files: Iterable[Place]) -> list[int | None]:
    """Bytes of each file, None where there is none; files of a bucket are asked for at the same time."""

    def one(file: Place) -> int | None:
        try:
            return size(file)
        except FileNotFoundError:
            return None

    files = list(files)
    if not any(is_remote(file) for file in files):
        return [one(file) for file in files]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(one, files))


def write(file: Place, content: bytes | str) -> None:
    """Writes a file, whole or not at all; text as UTF-8. An object of a bucket appears when it is whole anyway."""
    file, data = path(file), content.encode() if isinstance(content, str) else content
    if is_remote(file):
        file.write_bytes(data)
        return
    # A name of its own: several processes may write the same file.
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def local(file: Place) -> Iterator[Path]:
    """The file on a disk of this machine: itself, or of a bucket a copy in the temporary folder (TMPDIR), for as long
    as the context lasts. For what needs to seek in a file, and for decoders.

    Raises:
      FileNotFoundError: no such file in the bucket.
    """
    file = path(file)
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
        copy = Path(folder) / file.name
        file.copy(copy)
        yield copy


@contextlib.contextmanager
def written(file: Place) -> Iterator[Path]:
    """A path on a disk of this machine to write a file to, which becomes `file` at the end of the context, whole or,
    where that is left by an exception, not at all."""
    file = path(file)
    if is_remote(file):
        with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
            partial = Path(folder) / file.name
            yield partial
            put(partial, file)
        return
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def put(file: Path, place: Place) -> None:
    """Copies a file of this machine to `place`; what was there is replaced."""
    epath.Path(file).copy(path(place), overwrite=True)


def put_tree(folder: Place, place: Place) -> None:
    """Copies all files of a folder of this machine into `place`; what was there of the same names is replaced."""
    folder, place = Path(folder), path(place)
    for file in sorted(found for found in folder.rglob("*") if found.is_file()):
        target = place / file.relative_to(folder).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        put(file, target)


def move(pairs: Sequence[tuple[Place, Place]]) -> None:
    """Renames files within one bucket, which moves no data; what was there is replaced."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda pair: path(pair[0]).replace(path(pair[1])), pairs))


def remove_tree(folder: Place) -> None:
    """Removes a folder and all in it, as far as that is possible."""
    folder = path(folder)
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        folder.rmtree(missing_ok=True)
